using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>Brings what awaits on no loop (the directory, imports, cuts) onto the simulated one, so that its order follows from the
/// seed too. In force on this thread until it is disposed.</summary>
internal sealed class LoopContext : SynchronizationContext, IDisposable
{
    private readonly ILoop _loop;
    private readonly SynchronizationContext? _before = Current;

    public LoopContext(ILoop loop)
    {
        _loop = loop;
        SetSynchronizationContext(this);
    }

    public override void Post(SendOrPostCallback d, object? state) => _loop.Post(() => d(state));

    public void Dispose() => SetSynchronizationContext(_before);
}
