using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>How full the store under a thin unit is, bytes.</summary>
/// <param name="AvailableBytes">What may still be written.</param>
/// <param name="UsedBytes">What the unit's allocated blocks take.</param>
public readonly record struct ThinUsage(ulong AvailableBytes, ulong UsedBytes);

/// <summary>How a volume is shown as a logical unit.</summary>
public sealed record LogicalUnitOptions
{
    /// <summary>Identity of the volume; serial number, NAA and UUID designators are made from it.</summary>
    public required Guid Uuid { get; init; }

    /// <summary>Logical block, bytes: 512 or 4096. Physical blocks are 4096 bytes always.</summary>
    public int BlockBytes { get; init; } = 512;

    /// <summary>Thin: UNMAP, WRITE SAME with UNMAP, GET LBA STATUS and LBPME.</summary>
    public bool IsThin { get; init; } = true;

    /// <summary>Every change is refused with 07/27/00, also when the device would take it.</summary>
    public bool IsReadOnly { get; init; }

    /// <summary>The medium can be ejected and loaded (START STOP UNIT).</summary>
    public bool IsRemovable { get; init; }

    /// <summary>On a rotating disk.</summary>
    public bool IsRotational { get; init; }

    /// <summary>With <see cref="Durability.Flush"/> the write cache is shown as on, and MODE SELECT may turn it off (every
    /// write is then FUA). With <see cref="Durability.Ack"/> it is off for good.</summary>
    public Durability Durability { get; init; } = Durability.Flush;

    /// <summary>Vendor, at most 8 ASCII characters.</summary>
    public string Vendor { get; init; } = "BLOCKD";

    /// <summary>Product, at most 16 ASCII characters.</summary>
    public string Product { get; init; } = "volume";

    /// <summary>Revision, at most 4 ASCII characters.</summary>
    public string Revision { get; init; } = "0001";

    /// <summary>Longest COMPARE AND WRITE, logical blocks; 1 to 255. Clusters use one.</summary>
    public byte CompareAndWriteBlocksMax { get; init; } = 1;

    /// <summary>Longest WRITE ATOMIC, bytes: what the device changes whole or not at all, also over a power cut.</summary>
    public int AtomicBytesMax { get; init; } = 1 << 20;

    /// <summary>SANITIZE is offered. On a thin unit OVERWRITE allocates every block.</summary>
    public bool HasSanitize { get; init; } = true;

    /// <summary>A sanitize takes at least this long, nanoseconds: its writes are spread so that other units of the store
    /// keep going.</summary>
    public ulong SanitizeNanosMin { get; init; } = 6_000_000_000;

    /// <summary>Commands at a time; one more is answered TASK SET FULL.</summary>
    public int TasksMax { get; init; } = 1024;

    /// <summary>The volume's door, which every command passes that reads or changes the medium; null: none.</summary>
    public VolumeAdmission? Admission { get; init; }

    /// <summary>Asked for LOG SENSE; null when unknown.</summary>
    public Func<ThinUsage>? Usage { get; init; }
}

/// <summary>
/// Where persistent reservations of one unit are kept. Called on the unit's loop, one call at a time. The bytes carry
/// their own checksum. A save is durable when it has answered Ok, and replaces what was saved before whole or not at all.
/// </summary>
public interface IReservationStore
{
    /// <summary>What was saved last; empty when nothing was. An error other than Ok means that it cannot be known.</summary>
    ValueTask<(IoStatus Status, ReadOnlyMemory<byte> Bytes)> LoadAsync();

    /// <summary>Replaces what is kept; at most <see cref="PersistentReservations.SavedBytesMax"/> bytes.</summary>
    ValueTask<IoStatus> SaveAsync(ReadOnlyMemory<byte> bytes);
}
