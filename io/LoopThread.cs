using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>Starts loops.</summary>
public static class LoopFactory
{
    /// <summary>
    /// Starts a thread with a loop. <paramref name="engine"/>: <c>io_uring</c>, <c>aio</c>, or <c>auto</c> (io_uring,
    /// else aio; the reason is in <see cref="LoopThread.FallbackReason"/>). Throws <see cref="IOException"/> when the
    /// engine cannot be had and <see cref="ArgumentException"/> for another word. <paramref name="busyPollNanos"/>: how
    /// long an io_uring loop looks for the next request before it sleeps, while they come faster than that; 0: never.
    /// </summary>
    public static LoopThread Create(
        string engine, string threadName, long poolBytes = 256 << 20, IRandom? random = null, ulong busyPollNanos = 0)
    {
        if (engine is not ("io_uring" or "aio" or "auto"))
            throw new ArgumentException($"no engine '{engine}': io_uring, aio or auto", nameof(engine));
        return new LoopThread(engine, threadName, poolBytes, random ?? new SystemRandom(), busyPollNanos);
    }
}

/// <summary>The thread of one loop. Its members may be used from any thread; disposed by whoever created it.</summary>
public sealed class LoopThread : IDisposable
{
    private readonly Thread _thread;
    private readonly TaskCompletionSource<KernelLoop> _started = new(TaskCreationOptions.RunContinuationsAsynchronously);

    internal LoopThread(string engine, string threadName, long poolBytes, IRandom random, ulong busyPollNanos)
    {
        _thread = new Thread(() => Run(engine, poolBytes, random, busyPollNanos)) { Name = threadName, IsBackground = true };
        _thread.UnsafeStart();
        Loop = _started.Task.GetAwaiter().GetResult();
    }

    /// <summary>An exception escaped on the loop, which has ended. Raised on the loop's thread.</summary>
    public event Action<Exception>? Failed;

    /// <summary>The loop.</summary>
    public KernelLoop Loop { get; }

    /// <summary>What it is called.</summary>
    public string Name => _thread.Name!;

    /// <summary>The kernel's number of the thread.</summary>
    public int SystemId { get; private set; }

    /// <summary>Why <c>auto</c> took aio; null when it did not.</summary>
    public string? FallbackReason { get; private set; }

    /// <summary>What escaped on the loop and ended it; null while all is well.</summary>
    public Exception? Failure { get; private set; }

    /// <summary>Runs <paramref name="action"/> on the loop soon.</summary>
    public void Post(Action action) => Loop.PostFromAnywhere(action);

    /// <summary>Runs <paramref name="work"/> on the loop; the task continues elsewhere.</summary>
    public Task<T> InvokeAsync<T>(Func<ValueTask<T>> work)
    {
        var done = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        if (!Loop.TryPostFromAnywhere(() => Carry(work, done)))
            done.SetException(new ObjectDisposedException(nameof(LoopThread), "the loop has ended"));
        return done.Task;
    }

    /// <summary>Runs <paramref name="work"/> on the loop; the task continues elsewhere.</summary>
    public Task InvokeAsync(Func<ValueTask> work) => InvokeAsync(async () =>
    {
        await work();
        return true;
    });

    /// <summary>Ends the loop: cancels what is in flight, waits for the kernel to let go of it, joins the thread.
    /// Not from the loop itself.</summary>
    public void Dispose()
    {
        Check.That(!Loop.IsHere);
        Loop.Stop();
        _thread.Join();
    }

    private static async void Carry<T>(Func<ValueTask<T>> work, TaskCompletionSource<T> done)
    {
        try
        {
            done.SetResult(await work());
        }
#pragma warning disable CA1031 // Whatever it is belongs to the caller.
        catch (Exception e)
#pragma warning restore CA1031
        {
            done.SetException(e);
        }
    }

    private void Run(string engine, long poolBytes, IRandom random, ulong busyPollNanos)
    {
        SystemId = Native.ThreadId;
        KernelLoop loop;
        try
        {
            loop = Make(engine, poolBytes, random, busyPollNanos);
        }
#pragma warning disable CA1031 // Whatever it is belongs to the creator's thread.
        catch (Exception e)
#pragma warning restore CA1031
        {
            _started.SetException(e);
            return;
        }

        _started.SetResult(loop);
        try
        {
            loop.Run();
        }
#pragma warning disable CA1031 // The owner decides; an unhandled exception here would only lose the message.
        catch (Exception e)
#pragma warning restore CA1031
        {
            Failure = e;
            if (Failed is null) Environment.FailFast("a loop failed", e);
            Failed(e);
        }
    }

    private KernelLoop Make(string engine, long poolBytes, IRandom random, ulong busyPollNanos)
    {
        string? failure = null;
        if (engine != "aio")
        {
            UringLoop? ring = UringLoop.TryCreate(poolBytes, random, busyPollNanos, out failure);
            if (ring is not null) return ring;
        }

        if (engine == "io_uring") throw new IOException("engine io_uring: " + failure);
        FallbackReason = failure;
        return AioLoop.Create(poolBytes, random);
    }
}
