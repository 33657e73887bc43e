using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// One end of a segment of EXTENDED COPY. While it is open it is a task of its unit: task management that ends the tasks of the
/// nexus there ends the copy too, and is answered when no piece of it is under way. Named by the loop of the copy; the unit's loop
/// opens it, moves its pieces and closes it, one after the other.
/// </summary>
/// <param name="nexus">The unit, as the nexus that copies uses it.</param>
/// <param name="lba">Its first block.</param>
/// <param name="skipBytes">Where it begins in that block and after it, bytes.</param>
/// <param name="isDestination">It is written.</param>
internal sealed class CopyEnd(UnitNexus nexus, ulong lba, uint skipBytes, bool isDestination)
{
    /// <summary>A tag that iSCSI gives to no task: nobody can ask for the end of this one alone.</summary>
    private const uint NoTag = uint.MaxValue;

    public UnitNexus Nexus { get; } = nexus;

    public LogicalUnit Unit => Nexus.Unit;

    public ulong Lba { get; } = lba;

    public uint SkipBytes { get; } = skipBytes;

    public bool IsDestination { get; } = isDestination;

    /// <summary>What stands for the copy in the task set of the unit.</summary>
    public ScsiCommand Command { get; } = new() { Nexus = nexus.Nexus, Tag = NoTag };

    /// <summary>Its task while it is open.</summary>
    public ScsiTask? Task { get; set; }

    /// <summary>What it holds of the volume while it is open, if it is written.</summary>
    public VolumeGate.Range? Held { get; set; }
}

/// <summary>What became of one piece.</summary>
/// <param name="Fault">Why it was not moved, or null.</param>
/// <param name="HasHoles">It was read, partly from nothing.</param>
internal readonly record struct CopiedPiece(Sense? Fault, bool HasHoles);
