namespace BlockServer.Core;

/// <summary>A client of an append-only volume, as a copy of the volume must know it.</summary>
/// <param name="Id">Identity.</param>
/// <param name="Floor">Up to this number nothing is remembered; 0: nothing was forgotten yet.</param>
/// <param name="Appends">What is remembered, in the order of its coming.</param>
public sealed record AppendClientState(Guid Id, ulong Floor, IReadOnlyList<AppendedAt> Appends);

/// <summary>An append that has landed.</summary>
/// <param name="Sequence">Its number among its client's.</param>
/// <param name="OffsetBytes">Where it lies.</param>
/// <param name="LengthBytes">How long it is.</param>
public readonly record struct AppendedAt(ulong Sequence, ulong OffsetBytes, uint LengthBytes);

/// <summary>What makes an append-only volume another one, besides its bytes.</summary>
/// <param name="LengthBytes">Its length.</param>
/// <param name="Clients">Whose appends are remembered, who appended longest ago first.</param>
public sealed record AppendCopyState(ulong LengthBytes, IReadOnlyList<AppendClientState> Clients);

/// <summary>
/// What a store does for append-only volumes that go to another store (docs/decisions/0013). Lives on the store's loop. A copy is an
/// append-only volume with epoch 0: nobody's yet. It is written as a disk, and told how long it is and who has appended what.
/// </summary>
public interface IAppendCopy
{
    /// <summary>Holds the appends of a volume back: those that have begun are finished, all others wait. Ok when none is under way and
    /// all is durable (of a store that has failed: as far as it can be); Conflict when that took longer than <paramref name="nanosMax"/>,
    /// then they are held all the same. End it with <see cref="ReleaseAppends"/>. Errors: NotFound.</summary>
    ValueTask<IoStatus> HoldAppendsAsync(uint volumeId, ulong nanosMax);

    /// <summary>Appends go on; or, when the volume <paramref name="hasMoved"/>, those that wait and all to come are answered so.</summary>
    void ReleaseAppends(uint volumeId, bool hasMoved);

    /// <summary>What a copy has to be told; null when there is no such append-only volume.</summary>
    AppendCopyState? CopyStateOf(uint volumeId);

    /// <summary>A copy as a disk that can be written, as long as it is nobody's; null when there is none.</summary>
    IBlockDevice? OpenCopy(uint volumeId);

    /// <summary>Says how long a copy is, and whose appends are in it; both replace what was said before. Durable with the next flush.
    /// Errors: NotFound (no copy), OutOfRange (beyond its maximum size), NoSpace (no room to remember the clients), Unavailable.</summary>
    ValueTask<IoStatus> SetCopyAsync(uint volumeId, AppendCopyState state);
}
