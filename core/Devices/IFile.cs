namespace BlockServer.Core;

/// <summary>
/// The medium under a store: a preallocated file or a raw block device, or in the simulation a disk that forgets,
/// tears and lies. Lives on one loop. Offsets, lengths and memory addresses are multiples of 4096; a file given
/// misaligned memory copies through a buffer of its own rather than fail. Requests complete in any order and are
/// durable only after a <see cref="FlushAsync"/> that was called after their answer. Short transfers are completed
/// inside; the answer is all or an error. Only a refusal (closed, out of range, misaligned) is answered inside the call; every
/// other answer comes later, so that a caller is not entered anew while it submits. Errors: IoError, NoSpace, Unavailable (closed).
/// </summary>
public interface IFile
{
    /// <summary>Usable size, a multiple of 4096.</summary>
    ulong SizeBytes { get; }

    /// <summary>Fills <paramref name="target"/>, borrowed until the answer. A read beyond what was ever written gives what
    /// the medium holds there (zeros in a fresh file, anything on a raw disk).</summary>
    ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target);

    /// <summary>Writes <paramref name="source"/>, borrowed and unchanged until the answer. After an error the range holds
    /// old, new or torn content.</summary>
    ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source);

    /// <summary>fdatasync: every write answered before this call is durable when it answers Ok. An error is final: the
    /// caller must never retry it (the kernel may have dropped the dirty pages) but stop.</summary>
    ValueTask<IoStatus> FlushAsync();

    /// <summary>Tells the medium that the range's content is not needed (punch hole, BLKDISCARD). A hint: NotSupported and
    /// errors change nothing that the store relies on. Reads of the range give anything afterwards.</summary>
    ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes);
}
