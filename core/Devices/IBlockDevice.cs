namespace BlockServer.Core;

/// <summary>What a read answered.</summary>
/// <param name="Status"><see cref="IoStatus.Ok"/> or why the target's content is undefined.</param>
/// <param name="HasHoles">At least one block of the range was unallocated (and was filled with zeros). A front end
/// that can send holes then asks <see cref="IBlockDevice.MapAsync"/>.</param>
public readonly record struct ReadResult(IoStatus Status, bool HasHoles = false)
{
    /// <summary>Every read that failed in this way.</summary>
    public static implicit operator ReadResult(IoStatus status) => new(status);
}

/// <summary>Modifiers of a change.</summary>
[Flags]
public enum WriteFlags
{
    /// <summary>Plain.</summary>
    None = 0,

    /// <summary>Answered only when durable on the medium (force unit access).</summary>
    Fua = 1,

    /// <summary>WRITE ZEROES only: allocate blocks and write zeros into them, leave no hole.</summary>
    NoHole = 2,

    /// <summary>WRITE ZEROES only: answer <see cref="IoStatus.NotSupported"/> at once instead of writing zeros slowly.</summary>
    FastOnly = 4,

    /// <summary>WRITE ZEROES only: give holes a block of zeros and leave allocated blocks as they are, also under writes at
    /// the same time.</summary>
    HolesOnly = 8,
}

/// <summary>One run of a device's map.</summary>
/// <param name="LengthBytes">How long the run is.</param>
/// <param name="IsHole">True: unallocated, reads as zeros. False: allocated.</param>
public readonly record struct MapRun(ulong LengthBytes, bool IsHole);

/// <summary>
/// A disk, as every layer of this house sees it. Lives on one loop: all calls come from that loop's thread and all
/// answers complete there. Offsets and lengths are bytes and need no alignment (a device merges sub-block writes under
/// the block's lock). Requests may complete in any order. Between two flushes nothing is promised about order; once
/// <see cref="FlushAsync"/> has answered, all changes answered before it was called are durable.
/// Every length is at most <see cref="Units.RequestBytesMax"/> for reads and writes; trim, zero and map take any length
/// inside the device. A zero length is answered Ok without effect.
/// Fast path: when <c>offset % 4096 == 0</c> and the memory is the aligned part of an <see cref="IoBuffer"/> (or
/// congruent with the offset modulo 4096), no copy is made; any other memory works and costs a bounce copy.
/// </summary>
public interface IBlockDevice
{
    /// <summary>Current size; may grow while open.</summary>
    ulong SizeBytes { get; }

    /// <summary>True when every change is refused with <see cref="IoStatus.ReadOnly"/>.</summary>
    bool IsReadOnly { get; }

    /// <summary>Fills <paramref name="target"/>, which the device borrows until the answer.
    /// Errors: OutOfRange, Corrupt, IoError, Unavailable.</summary>
    ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target);

    /// <summary>Writes <paramref name="source"/>, which the device borrows, unchanged, until the answer.
    /// Errors: OutOfRange, ReadOnly, NoSpace, IoError, Unavailable, Corrupt (merge with an unreadable block).</summary>
    ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags);

    /// <summary>Makes every change answered before this call durable.</summary>
    ValueTask<IoStatus> FlushAsync();

    /// <summary>Gives blocks back: whole blocks inside the range become holes and read as zeros; the partial edges are
    /// left as they are.</summary>
    ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags);

    /// <summary>The whole range reads as zeros afterwards, edges included; holes unless <see cref="WriteFlags.NoHole"/>.</summary>
    ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags);

    /// <summary>Hints that the range is read soon (NBD CACHE, SCSI PRE-FETCH): loads metadata, verifies that it is readable.</summary>
    ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes);

    /// <summary>
    /// Describes the range from <paramref name="offsetBytes"/> on, in order and without gaps, adjacent runs of one kind
    /// merged; stops after <paramref name="lengthBytes"/> or after <paramref name="runsMax"/> runs, whichever is first.
    /// The runs are clipped to the range. <paramref name="runs"/> is cleared first.
    /// </summary>
    ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs);
}
