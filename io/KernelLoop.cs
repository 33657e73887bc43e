using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>
/// What both engines share: the queue of posted actions, turn-end hooks, timers, pooled operations and the turn itself.
/// Made by <see cref="LoopFactory"/> on its own thread. Everything internal lives on that thread unless it says otherwise.
/// </summary>
public abstract class KernelLoop : ILoop
{
    // A wait never needs to be longer: nothing is polled, it only bounds arithmetic.
    private const ulong WaitNanosMax = 3_600_000_000_000;
    private const int PassesMax = 4;
    private const ulong StopNanosMax = 10_000_000_000;

    private readonly int _threadId = Environment.CurrentManagedThreadId;
    private readonly Lock _foreignLock = new();
    private readonly List<TurnEndHook> _hooks = [];
    private readonly List<IoOperation> _operations = [];
    private List<Action> _foreign = [];
    private List<Action> _foreignRunning = [];
    private List<Action> _posted = [];
    private List<Action> _postedRunning = [];
    private IoOperation[] _completed = new IoOperation[256];
    private IoOperation[] _completedRunning = new IoOperation[256];
    private int _completedCount;
    private IoOperation? _freeOperations;
    private Timer[] _timers = new Timer[64];
    private int _timerCount;
    private bool _isStopping; // under _foreignLock
    private bool _isAwake = true; // under _foreignLock: the loop will look at the queue before it sleeps
    private bool _isEnded; // under _foreignLock

    private protected KernelLoop(long poolBytes, IRandom random)
    {
        Random = random;
        Buffers = new BufferPool(poolBytes);
        ReadClock();
    }

    /// <summary>The engine's name as settings spell it: <c>io_uring</c> or <c>aio</c>.</summary>
    public abstract string EngineName { get; }

    /// <inheritdoc/>
    public ulong NowNanos { get; private set; }

    /// <inheritdoc/>
    public bool IsHere => Environment.CurrentManagedThreadId == _threadId;

    /// <inheritdoc/>
    public IRandom Random { get; }

    /// <inheritdoc/>
    public BufferPool Buffers { get; }

    /// <summary>Operations that the kernel has and has not answered.</summary>
    internal int InFlight { get; private set; }

    /// <inheritdoc/>
    public void Post(Action action)
    {
        Check.That(IsHere);
        _posted.Add(action);
    }

    /// <inheritdoc/>
    public void PostFromAnywhere(Action action)
    {
        if (!TryPostFromAnywhere(action)) return; // a loop that has ended runs nothing; its owner has disposed of it
    }

    /// <summary>As <see cref="PostFromAnywhere"/>; false when the loop has ended and will not run it.</summary>
    internal bool TryPostFromAnywhere(Action action)
    {
        lock (_foreignLock)
        {
            if (_isEnded) return false;
            _foreign.Add(action);
            WakeUnderLock();
            return true;
        }
    }

    /// <summary>Asks the loop to end after it has let go of everything in flight. From any thread.</summary>
    internal void Stop()
    {
        lock (_foreignLock)
        {
            if (_isEnded) return;
            _isStopping = true;
            WakeUnderLock();
        }
    }

    /// <inheritdoc/>
    public void CallAtTurnEnd(TurnEndHook hook)
    {
        if (hook.IsAsked) return;
        Check.That(IsHere);
        hook.IsAsked = true;
        _hooks.Add(hook);
    }

    /// <inheritdoc/>
    public LoopTimer CreateTimer(Action elapsed) => new Timer(this, elapsed);

    /// <summary>Turns until <see cref="Stop"/>; on the loop's thread, which made this object.</summary>
    internal void Run()
    {
        try
        {
            Turns();
        }
        finally
        {
            lock (_foreignLock) _isEnded = true;
            Release();
        }
    }

    private void Turns()
    {
        ulong stoppedAt = 0;
        while (true)
        {
            bool isStopping = RunForeign();
            RunPosted();
            RunTimers();
            RunHooks();
            if (isStopping)
            {
                if (stoppedAt == 0)
                {
                    stoppedAt = NowNanos;
                    CancelAll();
                }

                if (InFlight == 0 || NowNanos - stoppedAt > StopNanosMax) return;
            }

            ulong wait = _posted.Count > 0 || _completedCount > 0 ? 0 : isStopping ? 100_000_000 : NanosToNextTimer();
            if (wait > 0)
            {
                lock (_foreignLock)
                {
                    if (_foreign.Count > 0 || (_isStopping && !isStopping)) wait = 0;
                    else _isAwake = false;
                }
            }

            SubmitAndReap(wait);
            lock (_foreignLock) _isAwake = true;
            ReadClock();
            RunCompleted();
        }
    }

    /// <summary>fd, memory, offset, length: answers the count or -errno.</summary>
    internal abstract ValueTask<int> ReadAtAsync(int fd, nint target, int length, ulong offset);

    /// <inheritdoc cref="ReadAtAsync"/>
    internal abstract ValueTask<int> WriteAtAsync(int fd, nint source, int length, ulong offset);

    /// <summary>An answer that is known already; it is given in this turn or the next, never inside the caller's call.</summary>
    internal ValueTask<int> AnswerAsync(int result)
    {
        Check.That(IsHere);
        IoOperation operation = Rent(0);
        ValueTask<int> answer = operation.Begin();
        Complete(operation, result);
        return answer;
    }

    /// <summary>fdatasync: 0 or -errno.</summary>
    internal abstract ValueTask<int> SyncDataAsync(int fd);

    /// <summary>Makes a socket known before its first operation.</summary>
    internal abstract void AddSocket(SocketState socket);

    /// <summary>Forgets a socket before its descriptor is closed or given away; nothing is outstanding on it.</summary>
    internal abstract void RemoveSocket(SocketState socket);

    /// <summary>recv: the count, 0 at the end, or -errno.</summary>
    internal abstract ValueTask<int> ReceiveAsync(SocketState socket, nint target, int length);

    /// <summary>sendmsg of the Native.MessageHeader at <paramref name="message"/>: the count or -errno.</summary>
    internal abstract ValueTask<int> SendAsync(SocketState socket, nint message);

    /// <summary>accept: a descriptor or -errno.</summary>
    internal abstract ValueTask<int> AcceptAsync(SocketState socket);

    /// <summary>Runs a call that may block and has no asynchronous form, on the runtime's thread pool.</summary>
    internal ValueTask<int> OffloadAsync(Func<int> call)
    {
        var done = new LoopEvent<int>();
        ThreadPool.UnsafeQueueUserWorkItem(
            _ =>
            {
                int result = call();
                PostFromAnywhere(() => done.Set(result));
            },
            null);
        return done.WaitAsync();
    }

    /// <summary>Gives the engine what was asked for, waits up to that long for something to complete, and reports every
    /// completion with <see cref="Complete"/>.</summary>
    private protected abstract void SubmitAndReap(ulong waitNanos);

    /// <summary>Makes a sleeping <see cref="SubmitAndReap"/> return. From any thread, under the foreign lock.</summary>
    private protected abstract void Wake();

    /// <summary>Cancels whatever can be cancelled, so that the loop can end.</summary>
    private protected abstract void CancelAll();

    /// <summary>Gives everything back to the kernel.</summary>
    private protected abstract void Release();

    private protected IoOperation Rent(int kind)
    {
        IoOperation? operation = _freeOperations;
        if (operation is null)
        {
            operation = new IoOperation(this, _operations.Count);
            _operations.Add(operation);
        }
        else
        {
            _freeOperations = operation.Next;
            operation.Next = null;
        }

        operation.Kind = kind;
        InFlight++;
        return operation;
    }

    private protected IoOperation OperationOf(int index) => _operations[index];

    /// <summary>Notes an answer; its awaiter runs when all answers of the turn are in.</summary>
    private protected void Complete(IoOperation operation, int result)
    {
        operation.Result = result;
        if (_completedCount == _completed.Length) Array.Resize(ref _completed, _completed.Length * 2);
        _completed[_completedCount++] = operation;
        InFlight--;
    }

    internal void TakeBack(IoOperation operation)
    {
        operation.Next = _freeOperations;
        _freeOperations = operation;
    }

    private void WakeUnderLock()
    {
        if (_isAwake) return;
        _isAwake = true;
        Wake();
    }

    private void ReadClock() => NowNanos = MonotonicClock.ReadNanos();

    private bool RunForeign()
    {
        bool isStopping;
        lock (_foreignLock)
        {
            isStopping = _isStopping;
            (_foreign, _foreignRunning) = (_foreignRunning, _foreign);
        }

        for (int i = 0; i < _foreignRunning.Count; i++) _foreignRunning[i]();
        _foreignRunning.Clear();
        return isStopping;
    }

    private void RunPosted()
    {
        (_posted, _postedRunning) = (_postedRunning, _posted);
        for (int i = 0; i < _postedRunning.Count; i++) _postedRunning[i]();
        _postedRunning.Clear();
    }

    private void RunHooks()
    {
        for (int i = 0; i < _hooks.Count; i++)
        {
            _hooks[i].IsAsked = false;
            _hooks[i].Run();
        }

        _hooks.Clear();
    }

    private void RunCompleted()
    {
        // What is answered while these run is run in the same turn, a few times over, so that its replies leave with it.
        for (int pass = 0; pass < PassesMax && _completedCount > 0; pass++)
        {
            int count = _completedCount;
            (_completed, _completedRunning) = (_completedRunning, _completed);
            _completedCount = 0;
            for (int i = 0; i < count; i++)
            {
                IoOperation operation = _completedRunning[i];
                _completedRunning[i] = null!;
                operation.Complete(operation.Result);
            }
        }
    }

    private void RunTimers()
    {
        while (_timerCount > 0 && _timers[0].DueNanos <= NowNanos)
        {
            Timer timer = _timers[0];
            Remove(timer);
            timer.Elapse();
        }
    }

    private ulong NanosToNextTimer()
    {
        if (_timerCount == 0) return WaitNanosMax;
        ulong due = _timers[0].DueNanos;
        return due <= NowNanos ? 0 : Math.Min(due - NowNanos, WaitNanosMax);
    }

    private void Insert(Timer timer)
    {
        if (_timerCount == _timers.Length) Array.Resize(ref _timers, _timers.Length * 2);
        Place(timer, _timerCount++);
        SiftUp(timer);
    }

    private void Remove(Timer timer)
    {
        int hole = timer.Index;
        timer.Index = -1;
        Timer last = _timers[--_timerCount];
        _timers[_timerCount] = null!;
        if (last == timer) return;
        Place(last, hole);
        SiftUp(last);
        SiftDown(last);
    }

    private void SiftUp(Timer timer)
    {
        int at = timer.Index;
        while (at > 0 && _timers[(at - 1) / 2].DueNanos > timer.DueNanos)
        {
            Place(_timers[(at - 1) / 2], at);
            at = (at - 1) / 2;
        }

        Place(timer, at);
    }

    private void SiftDown(Timer timer)
    {
        int at = timer.Index;
        while (2 * at + 1 < _timerCount)
        {
            int child = 2 * at + 1;
            if (child + 1 < _timerCount && _timers[child + 1].DueNanos < _timers[child].DueNanos) child++;
            if (_timers[child].DueNanos >= timer.DueNanos) break;
            Place(_timers[child], at);
            at = child;
        }

        Place(timer, at);
    }

    private void Place(Timer timer, int index)
    {
        _timers[index] = timer;
        timer.Index = index;
    }

    private sealed class Timer(KernelLoop loop, Action elapsed) : LoopTimer
    {
        public ulong DueNanos { get; private set; }

        public int Index { get; set; } = -1;

        public override bool IsArmed => Index >= 0;

        public override void Start(ulong delayNanos)
        {
            Check.That(loop.IsHere);
            Stop();
            DueNanos = loop.NowNanos + Math.Min(delayNanos, ulong.MaxValue / 4);
            loop.Insert(this);
        }

        public override void Stop()
        {
            if (Index >= 0) loop.Remove(this);
        }

        public void Elapse() => elapsed();
    }
}

/// <summary>One operation that the kernel has; pooled by its loop.</summary>
internal sealed class IoOperation(KernelLoop loop, int index) : LoopOperation<int>
{
    /// <summary>Place in the loop's table; travels through the kernel.</summary>
    public int Index { get; } = index;

    public int Kind { get; set; }

    public int Result { get; set; }

    public IoOperation? Next { get; set; }

    /// <summary>What a readiness engine needs to try again.</summary>
    public SocketState? Socket { get; set; }

    public nint Address { get; set; }

    public int Length { get; set; }

    protected override void OnTaken()
    {
        Socket = null;
        loop.TakeBack(this);
    }
}

/// <summary>A socket as the engines see it.</summary>
internal sealed class SocketState(int fd)
{
    public int Fd { get; } = fd;

    /// <summary>Place in a readiness engine's table.</summary>
    public int Index { get; set; } = -1;

    /// <summary>Its owner shut it down: what still waits is to be answered.</summary>
    public bool IsShut { get; set; }

    /// <summary>Receive or accept that waits for readiness.</summary>
    public IoOperation? Reader { get; set; }

    /// <summary>Send that waits for readiness.</summary>
    public IoOperation? Writer { get; set; }
}
