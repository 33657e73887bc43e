using System.Buffers.Binary;
using System.Numerics;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>INQUIRY and the vital product data pages.</summary>
public sealed partial class LogicalUnit
{
    /// <summary>Most blocks in one UNMAP descriptor and in one command, and descriptors in a list.</summary>
    private const uint UnmapBlocksMax = 1 << 20, UnmapDescriptorsMax = 256;

    private static readonly byte[] PagesThick = [0x00, 0x80, 0x83, 0x85, 0x86, 0x87, 0x88, 0x8F, 0xB0, 0xB1];
    private static readonly byte[] PagesThin = [.. PagesThick, 0xB2];

    private readonly byte[][] _designators;

    /// <summary>Most blocks of one WRITE SAME: 1 GiB of small blocks; of large ones no more than 128 MiB, so that a length
    /// that a plain write cannot have is not promised here either.</summary>
    private uint WriteSameBlocksMax => _blockBytes == 512 ? 1u << 21 : 1u << 15;

    private uint AtomicBlocksMax => (uint)(_options.AtomicBytesMax >> _blockShift);

    internal bool HasDesignator(ReadOnlySpan<byte> wanted)
    {
        foreach (byte[] own in _designators)
        {
            // Code set, type and association, then the identifier; reserved and protocol bits do not count.
            bool sameKind = wanted.Length >= 4 && (wanted[0] & 0x0F) == own[0] && (wanted[1] & 0x3F) == own[1] && wanted[3] == own[3];
            if (sameKind && wanted.Length >= own.Length && wanted.Slice(4, own[3]).SequenceEqual(own.AsSpan(4))) return true;
        }

        return false;
    }

    private ValueTask<ScsiResult> Inquiry(ScsiCommand command, UnitNexus nexus)
    {
        byte[] cdb = command.Cdb;
        int allocation = TransferPlan.AllocationOf(cdb);
        if ((cdb[1] & 0x02) != 0) return new(Sense.InCdb(1, 1)); // CMDDT is obsolete
        if ((cdb[1] & 0x01) == 0)
        {
            if (cdb[2] != 0) return new(Sense.InCdb(2));
            const byte flags = 0x10 | 0x08; // TPGS: implicit; 3PC
            int standard = InquiryData.WriteStandard(
                _scratch, 0, _options.IsRemovable, flags, _options.Vendor, _options.Product, _options.Revision);
            return DataIn.Reply(_loop, command, _scratch, standard, allocation);
        }

        Span<byte> page = _scratch;
        page[..1024].Clear();
        page[1] = cdb[2];
        int length = WritePage(cdb[2], page[4..], nexus);
        if (length < 0) return new(Sense.InCdb(2));
        BinaryPrimitives.WriteUInt16BigEndian(page[2..], (ushort)length);
        return DataIn.Reply(_loop, command, _scratch, 4 + length, allocation);
    }

    /// <summary>Length of the page's body, or -1 when there is no such page.</summary>
    private int WritePage(byte code, Span<byte> body, UnitNexus nexus)
    {
        switch (code)
        {
            case 0x00:
                byte[] pages = _options.IsThin ? PagesThin : PagesThick;
                pages.CopyTo(body);
                return pages.Length;
            case 0x80:
                InquiryData.PutText(body[..32], InquiryData.Serial(_options));
                return 32;
            case 0x83:
                return WriteDesignators(body, nexus);
            case 0x85:
                return 0; // no management addresses
            case 0x86:
                body[1] = 0x07; // HEADSUP, ORDSUP, SIMPSUP
                body[2] = _options.Durability == Durability.Flush ? (byte)0x01 : (byte)0; // V_SUP
                body[3] = 0x01; // LUICLR
                body[9] = ScsiCommand.SenseBytesMax;
                return 60;
            case 0x87:
                (body[0], body[1]) = (0x3F, 0xFF); // every page is shared by all nexuses
                return 4;
            case 0x88:
                return WritePorts(body, nexus);
            case 0x8F:
                return WriteThirdParty(body);
            case 0xB0:
                WriteLimits(body);
                return 60;
            case 0xB1:
                BinaryPrimitives.WriteUInt16BigEndian(body, _options.IsRotational ? (ushort)7200 : (ushort)1);
                body[3] = _options.IsThin && _options.HasSanitize ? (byte)0x40 : (byte)0; // WABEREQ: reads work after block erase
                return 60;
            case 0xB2 when _options.IsThin:
                body[0] = (byte)BitOperations.Log2((uint)(Units.ExtentBytes >> _blockShift)); // thresholds count extents
                body[1] = 0xE4; // LBPU, LBPWS, LBPWS10, LBPRZ
                body[2] = 0x02; // thin
                return 4;
            default:
                return -1;
        }
    }

    /// <summary>Body of B0: one byte of WSNZ, then limits in logical blocks (SBC-3, 6.5.3; offsets are of the page less 4).</summary>
    private void WriteLimits(Span<byte> body)
    {
        uint physical = (uint)(Units.BlockBytes >> _blockShift);
        body[0] = 0x01; // WSNZ: zero blocks of WRITE SAME do not mean all
        body[1] = _options.CompareAndWriteBlocksMax;
        BinaryPrimitives.WriteUInt16BigEndian(body[2..], (ushort)physical);
        BinaryPrimitives.WriteUInt32BigEndian(body[4..], TransferBlocksMax);
        BinaryPrimitives.WriteUInt32BigEndian(body[8..], (uint)(Units.ExtentBytes >> _blockShift));
        if (_options.IsThin)
        {
            BinaryPrimitives.WriteUInt32BigEndian(body[16..], UnmapBlocksMax);
            BinaryPrimitives.WriteUInt32BigEndian(body[20..], UnmapDescriptorsMax);
            BinaryPrimitives.WriteUInt32BigEndian(body[24..], physical);
            BinaryPrimitives.WriteUInt32BigEndian(body[28..], 0x80000000);
        }

        BinaryPrimitives.WriteUInt64BigEndian(body[32..], WriteSameBlocksMax);
        BinaryPrimitives.WriteUInt32BigEndian(body[40..], AtomicBlocksMax);
    }

    private int WriteDesignators(Span<byte> body, UnitNexus nexus)
    {
        int at = 0;
        foreach (byte[] designator in _designators)
        {
            designator.CopyTo(body[at..]);
            at += designator.Length;
        }

        at += WriteNumber(body[at..], 0x94, nexus.Port); // relative target port
        at += WriteNumber(body[at..], 0x95, 1); // target port group
        at += InquiryData.WriteName(body[at..], 1, InquiryData.PortName(nexus.Target.Options.Name, nexus.Nexus.PortalGroup));
        at += InquiryData.WriteName(body[at..], 2, nexus.Target.Options.Name);
        return at;
    }

    private static int WriteNumber(Span<byte> target, byte kind, ushort number)
    {
        target[..8].Clear();
        (target[0], target[1], target[3]) = (0x51, kind, 4);
        BinaryPrimitives.WriteUInt16BigEndian(target[6..], number);
        return 8;
    }

    private static int WritePorts(Span<byte> body, UnitNexus nexus)
    {
        int at = 0;
        foreach (ushort port in nexus.Target.Options.PortalGroups)
        {
            body.Slice(at, 12).Clear();
            BinaryPrimitives.WriteUInt16BigEndian(body[(at + 2)..], nexus.Target.Options.PortOf(port));
            int length = InquiryData.WriteName(body[(at + 12)..], 1, InquiryData.PortName(nexus.Target.Options.Name, port));
            BinaryPrimitives.WriteUInt16BigEndian(body[(at + 10)..], (ushort)length);
            at += 12 + length;
        }

        return at;
    }

    /// <summary>Third-party copy: the commands, their lists, the descriptors (SPC-4, 7.8.17); each part a multiple of four.</summary>
    private static int WriteThirdParty(Span<byte> body)
    {
        ReadOnlySpan<byte> parts =
        [
            0x00, 0x01, 0x00, 0x0C, 8, ScsiOp.ExtendedCopy, 1, 0x00, ScsiOp.ReceiveCopy, 3, 0x00, 0x03, 0x04, 0, 0, 0,
            0x00, 0x04, 0x00, 0x1C, 0, 0, 0, 0, 0, CopyLimits.TargetsMax, 0, CopyLimits.SegmentsMax,
            0, 0, CopyLimits.ListBytesMax >> 8, CopyLimits.ListBytesMax & 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0x00, 0x08, 0x00, 0x04, 3, 0x02, 0x0A, 0xE4,
            0x80, 0x01, 0x00, 0x20, 0, 0, 0, CopyLimits.ConcurrentMax, CopyLimits.ConcurrentMax, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        parts.CopyTo(body);
        return parts.Length;
    }
}
