using System.Buffers.Binary;
using System.Numerics;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Small commands about the unit: capacity, medium, sense, logs, diagnostics, port groups, what is supported.</summary>
public sealed partial class LogicalUnit
{
    private ValueTask<ScsiResult> ReadCapacity10(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        bool hasPmi = (cdb[8] & 1) != 0;
        if (!hasPmi && BinaryPrimitives.ReadUInt32BigEndian(cdb.AsSpan(2)) != 0) return new(Sense.InCdb(2));
        BinaryPrimitives.WriteUInt32BigEndian(_scratch, (uint)Math.Min(CapacityBlocks - 1, uint.MaxValue));
        BinaryPrimitives.WriteUInt32BigEndian(_scratch.AsSpan(4), (uint)_blockBytes);
        return DataIn.Reply(_loop, command, _scratch, 8, 8);
    }

    /// <summary>Last LBA, block length, no protection, log2 of the blocks in a physical one, LBPME and LBPRZ.</summary>
    private ValueTask<ScsiResult> ReadCapacity16(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        bool hasPmi = (cdb[14] & 1) != 0;
        if (!hasPmi && BinaryPrimitives.ReadUInt64BigEndian(cdb.AsSpan(2)) != 0) return new(Sense.InCdb(2));
        Span<byte> data = _scratch;
        data[..32].Clear();
        BinaryPrimitives.WriteUInt64BigEndian(data, CapacityBlocks - 1);
        BinaryPrimitives.WriteUInt32BigEndian(data[8..], (uint)_blockBytes);
        data[13] = (byte)BitOperations.Log2((uint)(Units.BlockBytes >> _blockShift));
        data[14] = _options.IsThin ? (byte)0xC0 : (byte)0;
        return DataIn.Reply(_loop, command, _scratch, 32, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>A waiting unit attention is answered as data and taken; else how far a sanitize is; else nothing.</summary>
    private ValueTask<ScsiResult> RequestSense(ScsiCommand command, UnitNexus nexus)
    {
        byte[] cdb = command.Cdb;
        Sense sense = nexus.HasAttention ? nexus.TakeAttention() : SanitizeSense() ?? (_isEjected ? NoMedium : default);
        int length = sense.WriteTo(_scratch, (cdb[1] & 1) != 0);
        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>Only LOEJ does anything, and only on a removable unit; stopping flushes unless told not to.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> StartStopAsync(ScsiCommand command, UnitNexus nexus)
    {
        byte flags = command.Cdb[4];
        bool isStart = (flags & 0x01) != 0, isLoadOrEject = (flags & 0x02) != 0, skipsFlush = (flags & 0x04) != 0;
        if (flags >> 4 != 0) return ScsiResult.Good; // a power condition: there are none to change
        if (isLoadOrEject && !_options.IsRemovable) return Sense.InCdb(4, 1);
        if (isLoadOrEject && _nexuses.Exists(static n => n.Prevents)) return new Sense(SenseKey.IllegalRequest, 0x5302);
        if (!isStart && !skipsFlush && !_isEjected && !IsProtected(nexus))
        {
            IoStatus status = await _device.FlushAsync();
            if (status != IoStatus.Ok) return Failure(status, isWrite: true);
        }

        if (isLoadOrEject) _isEjected = !isStart;
        return ScsiResult.Good;
    }

    private static ScsiResult PreventAllow(ScsiCommand command, UnitNexus nexus)
    {
        nexus.Prevents = (command.Cdb[4] & 1) != 0;
        return ScsiResult.Good;
    }

    /// <summary>The default self-test (nothing can be wrong that a read would not show); no list is taken.</summary>
    private static ScsiResult SendDiagnostic(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        bool isDefault = (cdb[1] & 0x04) != 0;
        if (TransferPlan.ListOf(cdb) != 0) return Sense.InCdb(3);
        return isDefault || (cdb[1] & 0xF0) == 0 ? ScsiResult.Good : Sense.InCdb(1, 7);
    }

    /// <summary>No defects: an empty list in the format asked for.</summary>
    private ValueTask<ScsiResult> ReadDefects(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        bool isLong = cdb[0] == ScsiOp.ReadDefects12;
        int length = isLong ? 8 : 4;
        _scratch.AsSpan(0, length).Clear();
        _scratch[1] = (byte)((isLong ? cdb[1] : cdb[2]) & 0x1F);
        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>Page 00: supported pages (subpage FF: with subpages). Page 0C: logical block provisioning.</summary>
    private ValueTask<ScsiResult> LogSense(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        byte code = (byte)(cdb[2] & 0x3F), subpage = cdb[3];
        bool hasUsage = _options.IsThin && _options.Usage is not null;
        if ((cdb[1] & 1) != 0) return new(Sense.InCdb(1, 0)); // SP
        Span<byte> data = _scratch;
        data[..64].Clear();
        int length;
        if (code == 0 && subpage is 0 or 0xFF)
        {
            length = 4;
            foreach (byte page in hasUsage ? [0x00, 0x0C] : (ReadOnlySpan<byte>)[0x00])
            {
                data[length++] = page;
                if (subpage == 0xFF) data[length++] = 0;
            }

            if (subpage == 0xFF) (data[0], data[1]) = (0x40, 0xFF);
        }
        else if (code == 0x0C && subpage == 0 && hasUsage)
        {
            ThinUsage usage = _options.Usage!();
            data[0] = 0x0C;
            length = 4 + WriteResource(data[4..], 1, usage.AvailableBytes, 0x02); // shared with other units
            length += WriteResource(data[length..], 2, usage.UsedBytes, 0x01); // this unit's
        }
        else
        {
            return new(Sense.InCdb(subpage == 0 ? 2 : 3));
        }

        BinaryPrimitives.WriteUInt16BigEndian(data[2..], (ushort)(length - 4));
        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>A resource count parameter: code, 03, 08, count in threshold sets (extents), scope, 0.</summary>
    private static int WriteResource(Span<byte> target, ushort code, ulong bytes, byte scope)
    {
        BinaryPrimitives.WriteUInt16BigEndian(target, code);
        (target[2], target[3]) = (0x03, 0x08);
        BinaryPrimitives.WriteUInt32BigEndian(target[4..], (uint)Math.Min(bytes >> Units.ExtentShift, uint.MaxValue));
        target[8] = scope;
        return 12;
    }

    private ValueTask<ScsiResult> MaintenanceIn(ScsiCommand command, UnitNexus nexus, CommandEntry entry) => entry.Action switch
    {
        ScsiOp.ReportPortGroups => ReportPortGroups(command, nexus),
        ScsiOp.ReportOpcodes => ReportOpcodes(command),
        _ => ReportTaskFunctions(command),
    };

    /// <summary>One group, active/optimized, preferred, with every portal group of the target.</summary>
    private ValueTask<ScsiResult> ReportPortGroups(ScsiCommand command, UnitNexus nexus)
    {
        byte[] cdb = command.Cdb;
        int format = cdb[1] >> 5;
        if (format > 1) return new(Sense.InCdb(1, 7));
        Span<byte> data = _scratch;
        data[..16].Clear();
        int at = 4;
        if (format == 1)
        {
            data[4] = 0x10; // extended header, no implicit transition time
            at = 8;
        }

        IReadOnlyList<ushort> ports = nexus.Target.Options.PortalGroups;
        data.Slice(at, 8 + 4 * ports.Count).Clear();
        data[at] = 0x80; // PREF, active/optimized
        data[at + 1] = 0x01; // AO_SUP
        BinaryPrimitives.WriteUInt16BigEndian(data[(at + 2)..], 1);
        data[at + 7] = (byte)ports.Count;
        at += 8;
        foreach (ushort port in ports)
        {
            BinaryPrimitives.WriteUInt16BigEndian(data[(at + 2)..], nexus.Target.Options.PortOf(port));
            at += 4;
        }

        BinaryPrimitives.WriteUInt32BigEndian(data, (uint)(at - 4));
        return DataIn.Reply(_loop, command, _scratch, at, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>States are implicit only: there is nothing that an initiator could set.</summary>
    private static ScsiResult SetPortGroups() => Sense.InCdb(1, 4);

    /// <summary>RTMF: abort task, abort task set, clear task set, LU reset; with REPD the extended answer.</summary>
    private ValueTask<ScsiResult> ReportTaskFunctions(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        int allocation = TransferPlan.AllocationOf(cdb);
        if (allocation < 4) return new(Sense.InCdb(6));
        Span<byte> data = _scratch;
        data[..16].Clear();
        data[0] = 0x80 | 0x40 | 0x10 | 0x08 | 0x02; // ATS, ATSS, CTSS, LURS, target reset
        if ((cdb[2] & 0x80) == 0) return DataIn.Reply(_loop, command, _scratch, 4, allocation);
        data[3] = 0x0C;
        return DataIn.Reply(_loop, command, _scratch, 16, allocation);
    }
}
