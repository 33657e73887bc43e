using System.Globalization;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>How a reservation of another nexus meets a command (SPC-4 table 51, SBC-3 table 15).</summary>
internal enum Access : byte
{
    /// <summary>Never in conflict.</summary>
    Free,

    /// <summary>In conflict with exclusive access.</summary>
    Read,

    /// <summary>In conflict with every reservation.</summary>
    Write,

    /// <summary>START STOP UNIT: starting is free, all else as a write.</summary>
    StartStop,

    /// <summary>PREVENT ALLOW: allowing is free, preventing as a write.</summary>
    Prevent,

    /// <summary>RESERVE, RELEASE, PERSISTENT RESERVE: decided by the command itself.</summary>
    Own,
}

/// <summary>What else is special about a command.</summary>
[Flags]
internal enum Traits
{
    None = 0,

    /// <summary>Answered although a unit attention waits, a sanitize runs or another nexus holds RESERVE (6).</summary>
    Always = 1,

    /// <summary>Needs the medium to be there.</summary>
    Medium = 2,

    /// <summary>Changes the medium: refused while write protected.</summary>
    Changes = 4,

    /// <summary>Any bit outside of its usage mask is refused.</summary>
    Strict = 8,

    /// <summary>Allowed while another nexus holds RESERVE (6).</summary>
    PastReserve = 16,

    /// <summary>Only on a thin unit.</summary>
    Thin = 32,

    /// <summary>Only where the unit offers SANITIZE.</summary>
    Sanitize = 64,
}

/// <summary>One command: its CDB's usage mask (SPC-4, 6.33.2) tells its length, and which bits are looked at.</summary>
internal sealed class CommandEntry(byte opcode, int action, Access access, Traits traits, string mask)
{
    public byte Opcode { get; } = opcode;

    /// <summary>Service action, or -1.</summary>
    public int Action { get; } = action;

    public Access Access { get; } = access;

    public Traits Traits { get; } = traits;

    public byte[] Mask { get; } = Parse(opcode, mask);

    public bool Has(Traits trait) => (Traits & trait) != 0;

    private static byte[] Parse(byte opcode, string mask)
    {
        var bytes = new byte[1 + mask.Length / 2];
        bytes[0] = opcode;
        for (int i = 1; i < bytes.Length; i++)
            bytes[i] = byte.Parse(mask.AsSpan(2 * i - 2, 2), NumberStyles.HexNumber, CultureInfo.InvariantCulture);
        return bytes;
    }
}

/// <summary>
/// Every command there is. REPORT SUPPORTED OPERATION CODES shows this table, and a command that is not in it is
/// refused, so that the report cannot be wrong. Service actions are in byte 1, bits 0 to 4.
/// </summary>
internal static class CommandTable
{
    private const Traits Reads = Traits.Medium, Writes = Traits.Medium | Traits.Changes;

    /// <summary>Ordered by operation code and service action.</summary>
    public static readonly CommandEntry[] All =
    [
        new(ScsiOp.TestUnitReady, -1, Access.Free, Traits.None, "0000000000"),
        new(ScsiOp.RequestSense, -1, Access.Free, Traits.Always, "010000FF00"),
        new(ScsiOp.Read6, -1, Access.Read, Reads, "1FFFFFFF00"),
        new(ScsiOp.Write6, -1, Access.Write, Writes, "1FFFFFFF00"),
        new(ScsiOp.Inquiry, -1, Access.Free, Traits.Always, "01FFFFFF00"),
        new(ScsiOp.ModeSelect6, -1, Access.Write, Traits.None, "110000FF00"),
        new(ScsiOp.Reserve6, -1, Access.Own, Traits.None, "0000000000"),
        new(ScsiOp.Release6, -1, Access.Own, Traits.PastReserve, "0000000000"),
        new(ScsiOp.ModeSense6, -1, Access.Read, Traits.None, "08FFFFFF00"),
        new(ScsiOp.StartStopUnit, -1, Access.StartStop, Traits.None, "01000FF700"),
        new(ScsiOp.SendDiagnostic, -1, Access.Write, Traits.None, "F700FFFF00"),
        new(ScsiOp.PreventAllow, -1, Access.Prevent, Traits.PastReserve, "0000000300"),
        new(ScsiOp.ReadCapacity10, -1, Access.Free, Traits.Medium | Traits.PastReserve, "00FFFFFFFF00000100"),
        new(ScsiOp.Read10, -1, Access.Read, Reads, "18FFFFFFFF1FFFFF00"),
        new(ScsiOp.Write10, -1, Access.Write, Writes, "18FFFFFFFF1FFFFF00"),
        new(ScsiOp.WriteVerify10, -1, Access.Write, Writes, "16FFFFFFFF1FFFFF00"),
        new(ScsiOp.Verify10, -1, Access.Read, Reads, "16FFFFFFFF1FFFFF00"),
        new(ScsiOp.Prefetch10, -1, Access.Read, Reads, "02FFFFFFFF1FFFFF00"),
        new(ScsiOp.SyncCache10, -1, Access.Write, Reads, "02FFFFFFFF1FFFFF00"),
        new(ScsiOp.ReadDefects10, -1, Access.Read, Reads, "001F00000000FFFF00"),
        new(ScsiOp.WriteSame10, -1, Access.Write, Writes, "18FFFFFFFF1FFFFF00"),
        new(ScsiOp.Unmap, -1, Access.Write, Writes | Traits.Thin, "01000000001FFFFF00"),
        new(ScsiOp.Sanitize, ScsiOp.SanitizeOverwrite, Access.Write, Writes | Traits.Strict | Traits.Sanitize, "BF0000000000FFFF00"),
        new(ScsiOp.Sanitize, ScsiOp.SanitizeBlockErase, Access.Write, Writes | Traits.Strict | Traits.Sanitize | Traits.Thin, "BF0000000000FFFF00"),
        new(ScsiOp.Sanitize, ScsiOp.SanitizeExit, Access.Write, Reads | Traits.Strict | Traits.Sanitize, "BF0000000000FFFF00"),
        new(ScsiOp.LogSense, -1, Access.Free, Traits.PastReserve, "01FFFF00FFFFFFFF00"),
        new(ScsiOp.ModeSelect10, -1, Access.Write, Traits.None, "110000000000FFFF00"),
        new(ScsiOp.Reserve10, -1, Access.Own, Traits.None, "000000000000000000"),
        new(ScsiOp.Release10, -1, Access.Own, Traits.PastReserve, "000000000000000000"),
        new(ScsiOp.ModeSense10, -1, Access.Read, Traits.None, "18FFFF000000FFFF00"),
        new(ScsiOp.PersistentIn, 0, Access.Own, Traits.None, "1F0000000000FFFF00"),
        new(ScsiOp.PersistentIn, 1, Access.Own, Traits.None, "1F0000000000FFFF00"),
        new(ScsiOp.PersistentIn, 2, Access.Own, Traits.None, "1F0000000000FFFF00"),
        new(ScsiOp.PersistentIn, 3, Access.Own, Traits.None, "1F0000000000FFFF00"),
        new(ScsiOp.PersistentOut, 0, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 1, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 2, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 3, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 4, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 5, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 6, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.PersistentOut, 7, Access.Own, Traits.None, "1FFF0000FFFFFFFF00"),
        new(ScsiOp.ExtendedCopy, 0, Access.Write, Traits.None, "1F0000000000000000FFFFFFFF0000"),
        new(ScsiOp.ReceiveCopy, 0, Access.Write, Traits.None, "1FFF00000000000000FFFFFFFF0000"),
        new(ScsiOp.ReceiveCopy, 3, Access.Write, Traits.None, "1FFF00000000000000FFFFFFFF0000"),
        new(ScsiOp.ReceiveCopy, 4, Access.Write, Traits.None, "1FFF00000000000000FFFFFFFF0000"),
        new(ScsiOp.Read16, -1, Access.Read, Reads, "18FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.CompareAndWrite, -1, Access.Write, Writes, "18FFFFFFFFFFFFFFFF000000FF1F00"),
        new(ScsiOp.Write16, -1, Access.Write, Writes, "18FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.OrWrite, -1, Access.Write, Writes, "18FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.WriteVerify16, -1, Access.Write, Writes, "16FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.Verify16, -1, Access.Read, Reads, "16FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.Prefetch16, -1, Access.Read, Reads, "02FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.SyncCache16, -1, Access.Write, Reads, "02FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.WriteSame16, -1, Access.Write, Writes, "19FFFFFFFFFFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.WriteAtomic16, -1, Access.Write, Writes, "18FFFFFFFFFFFFFFFF0000FFFF1F00"),
        new(ScsiOp.ServiceIn16, ScsiOp.ReadCapacity16, Access.Free, Traits.Medium | Traits.PastReserve, "1FFFFFFFFFFFFFFFFFFFFFFFFF0100"),
        new(ScsiOp.ServiceIn16, ScsiOp.GetLbaStatus, Access.Read, Reads | Traits.Thin, "1FFFFFFFFFFFFFFFFFFFFFFFFF0000"),
        new(ScsiOp.ReportLuns, -1, Access.Free, Traits.Always, "00FF000000FFFFFFFF0000"),
        new(ScsiOp.MaintenanceIn, ScsiOp.ReportPortGroups, Access.Free, Traits.None, "FF00000000FFFFFFFF0000"),
        new(ScsiOp.MaintenanceIn, ScsiOp.ReportOpcodes, Access.Read, Traits.None, "1F87FFFFFFFFFFFFFF0000"),
        new(ScsiOp.MaintenanceIn, ScsiOp.ReportTaskFunctions, Access.Read, Traits.None, "1F80000000FFFFFFFF0000"),
        new(ScsiOp.MaintenanceOut, ScsiOp.SetPortGroups, Access.Write, Traits.None, "1F00000000FFFFFFFF0000"),
        new(ScsiOp.Read12, -1, Access.Read, Reads, "18FFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.Write12, -1, Access.Write, Writes, "18FFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.WriteVerify12, -1, Access.Write, Writes, "16FFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.Verify12, -1, Access.Read, Reads, "16FFFFFFFFFFFFFFFF1F00"),
        new(ScsiOp.ReadDefects12, -1, Access.Read, Reads, "1FFFFFFFFFFFFFFFFF0000"),
    ];

    private static readonly CommandEntry?[] Plain = new CommandEntry?[256];
    private static readonly CommandEntry?[]?[] ByAction = new CommandEntry?[]?[256];

    static CommandTable()
    {
        foreach (CommandEntry entry in All)
        {
            if (entry.Action < 0) Plain[entry.Opcode] = entry;
            else (ByAction[entry.Opcode] ??= new CommandEntry?[32])[entry.Action] = entry;
        }
    }

    /// <summary>True when the operation code has service actions.</summary>
    public static bool HasActions(byte opcode) => ByAction[opcode] is not null;

    /// <summary>The entry of a CDB's first two bytes, or null.</summary>
    public static CommandEntry? Find(byte opcode, byte second) => Plain[opcode] ?? ByAction[opcode]?[second & 0x1F];

    /// <summary>Exact: without a service action, or with one.</summary>
    public static CommandEntry? FindExact(byte opcode, int action) =>
        action < 0 ? Plain[opcode] : action < 32 ? ByAction[opcode]?[action] : null;
}
