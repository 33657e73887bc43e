using BlockServer.Core;

namespace BlockServer.Tests.Simulated;

/// <summary>
/// A loop whose every event comes from one seed: the whole simulated world runs on it, on one thread. Events due at the
/// same time run in an order drawn from the seed, a turn takes a drawn number of them. Everything delivered is folded
/// into <see cref="EventHash"/>; two runs of one seed must give one hash.
/// </summary>
public sealed class SimLoop : ILoop
{
    private readonly PriorityQueue<Action, (ulong At, ulong Draw, ulong Sequence)> _events = new();
    private readonly Queue<Action> _mail = new();
    private readonly List<TurnEndHook> _hooks = [];
    private readonly SeededRandom _random;
    private ulong _sequence;

    /// <summary>A world of <paramref name="seed"/>.</summary>
    public SimLoop(ulong seed, long poolBytes = 64 << 20)
    {
        _random = new SeededRandom(seed);
        Buffers = new BufferPool(poolBytes);
    }

    /// <inheritdoc/>
    public ulong NowNanos { get; private set; } = 1_000_000_000;

    /// <inheritdoc/>
    public bool IsHere => true;

    /// <inheritdoc/>
    public IRandom Random => _random;

    /// <inheritdoc/>
    public BufferPool Buffers { get; }

    /// <summary>Folded over the time and number of every event that ran, and over what <see cref="Note"/> was told.</summary>
    public ulong EventHash { get; private set; } = 14695981039346656037;

    /// <summary>Events that ran.</summary>
    public ulong EventCount { get; private set; }

    /// <summary>Called before each event runs, with its number; a crash test throws from here or stops the run.</summary>
    public Func<ulong, bool>? StopBeforeEvent { get; set; }

    /// <summary>True after <see cref="StopBeforeEvent"/> answered true.</summary>
    public bool IsStopped { get; private set; }

    /// <summary>Folds a fact about the world into the event hash.</summary>
    public void Note(ulong fact) => EventHash = (EventHash ^ fact) * 1099511628211;

    /// <summary>Runs <paramref name="action"/> after <paramref name="delayNanos"/>.</summary>
    public void Schedule(ulong delayNanos, Action action) =>
        _events.Enqueue(action, (NowNanos + delayNanos, _random.NextUInt64(), _sequence++));

    /// <inheritdoc/>
    public void Post(Action action) => Schedule(0, action);

    /// <inheritdoc/>
    public void PostFromAnywhere(Action action)
    {
        _mail.Enqueue(action); // these keep their order among themselves, as in a real loop
        Schedule(0, () => _mail.Dequeue()());
    }

    /// <inheritdoc/>
    public void CallAtTurnEnd(TurnEndHook hook)
    {
        if (hook.IsAsked) return;
        hook.IsAsked = true;
        _hooks.Add(hook);
    }

    /// <inheritdoc/>
    public LoopTimer CreateTimer(Action elapsed) => new SimTimer(this, elapsed);

    /// <summary>Runs turns until <paramref name="done"/> holds, nothing is left to happen, or the run is stopped.
    /// Answers whether <paramref name="done"/> held.</summary>
    public bool RunUntil(Func<bool> done, ulong eventsMax = ulong.MaxValue)
    {
        ulong limit = eventsMax == ulong.MaxValue ? ulong.MaxValue : EventCount + eventsMax;
        RunHooks(); // of whatever was begun outside a turn
        while (!done())
        {
            if (IsStopped || EventCount >= limit || !RunTurn()) return done();
        }

        return true;
    }

    /// <summary>Waits so long by this loop's clock; for code whose seam for waiting speaks of time spans and tasks.</summary>
    public Task DelayAsync(TimeSpan time) => this.DelayAsync((ulong)time.TotalNanoseconds).AsTask();

    /// <summary>Runs until <paramref name="task"/> has finished and gives its result.</summary>
    public T Run<T>(ValueTask<T> task)
    {
        Task<T> asTask = task.AsTask();
        bool finished = RunUntil(() => asTask.IsCompleted);
        Check.That(finished);
        return asTask.GetAwaiter().GetResult();
    }

    /// <summary>Runs until <paramref name="task"/> has finished.</summary>
    public void Run(ValueTask task)
    {
        Task asTask = task.AsTask();
        bool finished = RunUntil(() => asTask.IsCompleted);
        Check.That(finished);
        asTask.GetAwaiter().GetResult();
    }

    /// <summary>Runs until nothing is left to happen (armed timers included).</summary>
    public void RunToQuiescence(ulong eventsMax = 10_000_000) => RunUntil(() => false, eventsMax);

    private bool RunTurn()
    {
        if (_events.Count == 0) return false;
        int batch = 1 + _random.NextBelow(8);
        ulong turnTime = 0;
        while (batch-- > 0 && _events.TryPeek(out _, out (ulong At, ulong Draw, ulong Sequence) key))
        {
            if (turnTime != 0 && key.At > turnTime) break;
            if (StopBeforeEvent is not null && StopBeforeEvent(EventCount))
            {
                IsStopped = true;
                return false;
            }

            Action action = _events.Dequeue();
            turnTime = NowNanos = Math.Max(NowNanos, key.At);
            EventCount++;
            Note(NowNanos);
            Note(key.Sequence);
            action();
        }

        RunHooks();
        return true;
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

    private sealed class SimTimer(SimLoop loop, Action elapsed) : LoopTimer
    {
        private ulong _arming;

        public override bool IsArmed => _isArmed;

        private bool _isArmed;

        public override void Start(ulong delayNanos)
        {
            _isArmed = true;
            ulong arming = ++_arming;
            loop.Schedule(delayNanos, () =>
            {
                if (!_isArmed || arming != _arming) return;
                _isArmed = false;
                elapsed();
            });
        }

        public override void Stop() => _isArmed = false;
    }
}
