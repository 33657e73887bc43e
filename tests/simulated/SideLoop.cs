using BlockServer.Core;

namespace BlockServer.Tests.Simulated;

/// <summary>Another loop of a simulated world: a mailbox and memory of its own, and the world's time and dice. Messages keep their
/// order and take up to <paramref name="delayNanosMax"/>.</summary>
public sealed class SideLoop(SimLoop world, ulong delayNanosMax = 0) : ILoop
{
    private readonly Queue<Action> _mail = new();

    /// <inheritdoc/>
    public ulong NowNanos => world.NowNanos;

    /// <inheritdoc/>
    public bool IsHere => true;

    /// <inheritdoc/>
    public IRandom Random => world.Random;

    /// <inheritdoc/>
    public BufferPool Buffers { get; } = new(64 << 20);

    /// <inheritdoc/>
    public void Post(Action action) => PostFromAnywhere(action);

    /// <inheritdoc/>
    public void PostFromAnywhere(Action action)
    {
        _mail.Enqueue(action);
        world.Schedule(delayNanosMax == 0 ? 0 : world.Random.NextBelow(delayNanosMax), () => _mail.Dequeue()());
    }

    /// <inheritdoc/>
    public void CallAtTurnEnd(TurnEndHook hook) => world.CallAtTurnEnd(hook);

    /// <inheritdoc/>
    public LoopTimer CreateTimer(Action elapsed) => world.CreateTimer(elapsed);
}
