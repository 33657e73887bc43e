using System.Buffers.Binary;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>REPORT SUPPORTED OPERATION CODES (SPC-4, 6.33).</summary>
public sealed partial class LogicalUnit
{
    private const int TimeoutDescriptorBytes = 12;

    private ValueTask<ScsiResult> ReportOpcodes(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        bool withTimeouts = (cdb[2] & 0x80) != 0;
        int option = cdb[2] & 0x07, length;
        if (option == 0)
        {
            length = WriteAllOpcodes(_scratch, withTimeouts);
        }
        else
        {
            byte opcode = cdb[3];
            int action = BinaryPrimitives.ReadUInt16BigEndian(cdb.AsSpan(4));
            bool hasActions = HasOfferedActions(opcode);
            if (option > 3 || (option == 1 && hasActions)) return new(Sense.InCdb(2, 2));
            if (option == 2 && CommandTable.FindExact(opcode, -1) is not null) return new(Sense.InCdb(2, 2));
            CommandEntry? entry = CommandTable.FindExact(opcode, option == 1 || !hasActions ? -1 : action);
            if (option == 3 && !hasActions && action != 0) entry = null;
            length = WriteOneOpcode(_scratch, entry is not null && IsOffered(entry) ? entry : null, withTimeouts);
        }

        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>Length u32, then per command: opcode, 0, service action u16, 0, CTDP and SERVACTV, CDB length u16.</summary>
    private int WriteAllOpcodes(Span<byte> target, bool withTimeouts)
    {
        int at = 4;
        foreach (CommandEntry entry in CommandTable.All)
        {
            if (!IsOffered(entry)) continue;
            Span<byte> one = target.Slice(at, 8);
            one.Clear();
            one[0] = entry.Opcode;
            if (entry.Action >= 0)
            {
                BinaryPrimitives.WriteUInt16BigEndian(one[2..], (ushort)entry.Action);
                one[5] = 0x01;
            }

            if (withTimeouts) one[5] |= 0x02;
            BinaryPrimitives.WriteUInt16BigEndian(one[6..], (ushort)entry.Mask.Length);
            at += 8;
            if (withTimeouts) at += WriteTimeouts(target[at..]);
        }

        BinaryPrimitives.WriteUInt32BigEndian(target, (uint)(at - 4));
        return at;
    }

    /// <summary>0, CTDP and SUPPORT (1: no, 3: as the standard says), CDB length u16, usage mask.</summary>
    private static int WriteOneOpcode(Span<byte> target, CommandEntry? entry, bool withTimeouts)
    {
        target[..4].Clear();
        target[1] = entry is null ? (byte)1 : (byte)3;
        if (entry is null) return 4;
        BinaryPrimitives.WriteUInt16BigEndian(target[2..], (ushort)entry.Mask.Length);
        entry.Mask.CopyTo(target[4..]);
        if (entry.Action >= 0) target[5] = (byte)((target[5] & ~0x1F) | entry.Action);
        int at = 4 + entry.Mask.Length;
        if (!withTimeouts) return at;
        target[1] |= 0x80;
        return at + WriteTimeouts(target[at..]);
    }

    /// <summary>Nominal and recommended times are not given (zero).</summary>
    private static int WriteTimeouts(Span<byte> target)
    {
        target[..TimeoutDescriptorBytes].Clear();
        target[1] = TimeoutDescriptorBytes - 2;
        return TimeoutDescriptorBytes;
    }
}
