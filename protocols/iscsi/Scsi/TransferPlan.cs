using System.Buffers.Binary;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Which blocks a CDB names.</summary>
/// <param name="Lba">First logical block.</param>
/// <param name="Blocks">How many.</param>
/// <param name="LengthAt">Where in the CDB the length is, for sense data.</param>
internal readonly record struct BlockRange(ulong Lba, uint Blocks, int LengthAt)
{
    /// <summary>Reads address and length as the operation code lays them out.</summary>
    public static BlockRange Of(ReadOnlySpan<byte> cdb)
    {
        switch (cdb[0])
        {
            case ScsiOp.Read6 or ScsiOp.Write6:
                return new BlockRange(BinaryPrimitives.ReadUInt32BigEndian(cdb) & 0x1FFFFF, cdb[4] == 0 ? 256u : cdb[4], 4);
            case ScsiOp.CompareAndWrite:
                return new BlockRange(BinaryPrimitives.ReadUInt64BigEndian(cdb[2..]), cdb[13], 13);
            case ScsiOp.WriteAtomic16:
                return new BlockRange(
                    BinaryPrimitives.ReadUInt64BigEndian(cdb[2..]), BinaryPrimitives.ReadUInt16BigEndian(cdb[12..]), 12);
        }

        return (cdb[0] >> 5) switch
        {
            1 or 2 => new BlockRange(BinaryPrimitives.ReadUInt32BigEndian(cdb[2..]), BinaryPrimitives.ReadUInt16BigEndian(cdb[7..]), 7),
            5 => new BlockRange(BinaryPrimitives.ReadUInt32BigEndian(cdb[2..]), BinaryPrimitives.ReadUInt32BigEndian(cdb[6..]), 6),
            _ => new BlockRange(BinaryPrimitives.ReadUInt64BigEndian(cdb[2..]), BinaryPrimitives.ReadUInt32BigEndian(cdb[10..]), 10),
        };
    }
}

/// <summary>Lengths of parameter lists and allocations, by operation code.</summary>
internal static class TransferPlan
{
    /// <summary>Longest parameter list that is taken, bytes.</summary>
    public const int ListBytesMax = 65536;

    /// <summary>Lengths beyond what any answer has are all the same.</summary>
    public const int AllocationMax = 1 << 20;

    public static int Clamp(uint allocation) => (int)Math.Min(allocation, AllocationMax);

    /// <summary>ALLOCATION LENGTH, clamped to 1 MiB; 0 when the command has none.</summary>
    public static int AllocationOf(ReadOnlySpan<byte> cdb)
    {
        switch (cdb[0])
        {
            case ScsiOp.RequestSense or ScsiOp.ModeSense6:
                return cdb[4];
            case ScsiOp.Inquiry:
                return BinaryPrimitives.ReadUInt16BigEndian(cdb[3..]);
            case ScsiOp.ModeSense10 or ScsiOp.LogSense or ScsiOp.PersistentIn or ScsiOp.ReadDefects10:
                return BinaryPrimitives.ReadUInt16BigEndian(cdb[7..]);
            case ScsiOp.ReadCapacity10:
                return 8;
            case ScsiOp.ReportLuns or ScsiOp.MaintenanceIn or ScsiOp.ReadDefects12:
                return Clamp(BinaryPrimitives.ReadUInt32BigEndian(cdb[6..]));
            case ScsiOp.ServiceIn16 or ScsiOp.ReceiveCopy:
                return Clamp(BinaryPrimitives.ReadUInt32BigEndian(cdb[10..]));
            default:
                return 0;
        }
    }

    /// <summary>PARAMETER LIST LENGTH; null when the command has none.</summary>
    public static uint? ListOf(ReadOnlySpan<byte> cdb)
    {
        switch (cdb[0])
        {
            case ScsiOp.ModeSelect6:
                return cdb[4];
            case ScsiOp.SendDiagnostic:
                return BinaryPrimitives.ReadUInt16BigEndian(cdb[3..]);
            case ScsiOp.ModeSelect10 or ScsiOp.Unmap or ScsiOp.Sanitize:
                return BinaryPrimitives.ReadUInt16BigEndian(cdb[7..]);
            case ScsiOp.PersistentOut:
                return BinaryPrimitives.ReadUInt32BigEndian(cdb[5..]);
            case ScsiOp.MaintenanceOut:
                return BinaryPrimitives.ReadUInt32BigEndian(cdb[6..]);
            case ScsiOp.ExtendedCopy:
                return BinaryPrimitives.ReadUInt32BigEndian(cdb[10..]);
            default:
                return null;
        }
    }
}
