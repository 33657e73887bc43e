using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>MODE SENSE and MODE SELECT.</summary>
public sealed partial class LogicalUnit
{
    private readonly ModePages _modes;

    private ValueTask<ScsiResult> ModeSense(ScsiCommand command, UnitNexus nexus)
    {
        byte[] cdb = command.Cdb;
        bool isLong = cdb[0] == ScsiOp.ModeSense10;
        bool hasLongDescriptor = isLong && (cdb[1] & 0x10) != 0;
        int control = cdb[2] >> 6;
        if (control == 3) return new(new Sense(SenseKey.IllegalRequest, 0x3900)); // saving is not supported
        Span<byte> data = _scratch;
        int header = isLong ? 8 : 4;
        data[..64].Clear();
        int descriptor = (cdb[1] & 0x08) != 0 ? 0 : WriteBlockDescriptor(data[header..], hasLongDescriptor);
        int pages = _modes.Write(data[(header + descriptor)..], (byte)(cdb[2] & 0x3F), cdb[3], control);
        if (pages < 0) return new(Sense.InCdb(2, 5));
        int length = header + descriptor + pages;
        byte specific = (byte)((IsProtected(nexus) ? 0x80 : 0) | 0x10); // WP, DPOFUA
        if (isLong)
        {
            BinaryPrimitives.WriteUInt16BigEndian(data, (ushort)(length - 2));
            (data[3], data[4]) = (specific, hasLongDescriptor ? (byte)1 : (byte)0);
            data[7] = (byte)descriptor;
        }
        else
        {
            (data[0], data[2], data[3]) = ((byte)(length - 1), specific, (byte)descriptor);
        }

        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>Short: blocks u32 (all ones when more), block length u32. Long: blocks u64, 0 u32, block length u32.</summary>
    private int WriteBlockDescriptor(Span<byte> target, bool isLong)
    {
        if (isLong)
        {
            BinaryPrimitives.WriteUInt64BigEndian(target, CapacityBlocks);
            BinaryPrimitives.WriteUInt32BigEndian(target[12..], (uint)_blockBytes);
            return 16;
        }

        BinaryPrimitives.WriteUInt32BigEndian(target, (uint)Math.Min(CapacityBlocks, uint.MaxValue));
        BinaryPrimitives.WriteUInt32BigEndian(target[4..], (uint)_blockBytes);
        return 8;
    }

    /// <summary>Switching the write cache off writes out what is in it before the answer.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> ModeSelectAsync(ScsiCommand command, UnitNexus nexus)
    {
        bool hadCache = _modes.HasWriteCache;
        ScsiResult result = ModeSelect(command, nexus);
        if (!hadCache || _modes.HasWriteCache || !result.IsGood) return result;
        return Failure(await _device.FlushAsync(), isWrite: true);
    }

    private ScsiResult ModeSelect(ScsiCommand command, UnitNexus nexus)
    {
        byte[] cdb = command.Cdb;
        bool isLong = cdb[0] == ScsiOp.ModeSelect10;
        if ((cdb[1] & 0x01) != 0) return Sense.InCdb(1, 0); // SP
        if ((cdb[1] & 0x10) == 0) return Sense.InCdb(1, 4); // PF: vendor specific lists are not known
        int length = (int)TransferPlan.ListOf(cdb)!.Value;
        if (length == 0) return ScsiResult.Good;
        ReadOnlySpan<byte> list = command.DataOut.Span[..length];
        int header = isLong ? 8 : 4;
        if (length < header) return Sense.ListLength;
        int descriptor = isLong ? BinaryPrimitives.ReadUInt16BigEndian(list[6..]) : list[3];
        bool hasLongDescriptor = isLong && (list[4] & 1) != 0;
        if (length < header + descriptor) return Sense.ListLength;
        if (descriptor != 0)
        {
            if (descriptor != (hasLongDescriptor ? 16 : 8)) return Sense.InList(isLong ? 6 : 3);
            if (DescriptorFault(list.Slice(header, descriptor), header) is { } fault) return fault;
        }

        if (_modes.Select(list[(header + descriptor)..], header + descriptor, out bool changed) is { } wrong) return wrong;
        if (changed) AttendAll(Attention.ModeChanged, nexus);
        return ScsiResult.Good;
    }

    /// <summary>The descriptor cannot change anything: it must say what is, or say nothing about the number of blocks.</summary>
    private Sense? DescriptorFault(ReadOnlySpan<byte> descriptor, int at)
    {
        bool isLong = descriptor.Length == 16;
        ulong blocks = isLong
            ? BinaryPrimitives.ReadUInt64BigEndian(descriptor) : BinaryPrimitives.ReadUInt32BigEndian(descriptor);
        ulong all = isLong ? ulong.MaxValue : uint.MaxValue;
        if (blocks != 0 && blocks != all && blocks != CapacityBlocks) return Sense.InList(at);
        uint length = BinaryPrimitives.ReadUInt32BigEndian(descriptor[^4..]);
        return (isLong ? length : length & 0xFFFFFF) == (uint)_blockBytes ? null : Sense.InList(at + descriptor.Length - 3);
    }
}
