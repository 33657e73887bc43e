using System.Buffers.Binary;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>A target with one unit (LUN 0) over a disk in RAM, and nexuses that speak to it as the transport does.</summary>
internal sealed class ScsiWorld
{
    public static readonly Guid Uuid = new("00112233-4455-4677-8899-aabbccddeeff");

    private uint _tag;

    public ScsiWorld(
        Func<LogicalUnitOptions, LogicalUnitOptions>? change = null, ulong sizeBytes = 4 << 20, bool isSlow = false,
        IReservationStore? store = null, Func<ScsiNexus, ushort, bool>? mayUse = null, ushort portBase = 0, bool isFar = false)
    {
        Loop = new SimLoop(7);
        UnitLoop = isFar ? new SideLoop(Loop) : Loop;
        Device = new MemoryDevice(sizeBytes, isSlow ? Loop : null);
        var options = new LogicalUnitOptions { Uuid = Uuid };
        Unit = new LogicalUnit(UnitLoop, Device, change?.Invoke(options) ?? options, store, Gate);
        Outside = new GatedDevice(Device, Gate);
        Target = new ScsiTarget(Loop, new ScsiTargetOptions { Name = "iqn.2024-01.test:a", PortalGroups = [1, 2], MayUse = mayUse, PortBase = portBase });
        Target.SetLun(0, Unit);
        A = Login("a", 1);
        B = Login("b", 2);
    }

    public SimLoop Loop { get; }

    /// <summary>The loop of the unit: another one when it is far.</summary>
    public ILoop UnitLoop { get; }

    public MemoryDevice Device { get; }

    public VolumeGate Gate { get; } = new();

    /// <summary>The disk as an NBD client reaches it.</summary>
    public GatedDevice Outside { get; }

    public LogicalUnit Unit { get; }

    public ScsiTarget Target { get; }

    /// <summary>Two nexuses whose first unit attention was taken.</summary>
    public ScsiNexus A { get; }

    public ScsiNexus B { get; }

    public ScsiNexus Login(string name, ushort group, bool clears = true, Action<ulong, ushort>? onEvent = null)
    {
        var nexus = new ScsiNexus
        {
            InitiatorName = $"iqn.2024-01.test:{name}", InitiatorPort = $"iqn.2024-01.test:{name},i,0x400000000001", PortalGroup = group, OnEvent = onEvent,
        };
        Target.AddNexus(nexus);
        if (clears) Assert.Equal(0x2900, Send(nexus, "00 00 00 00 00 00").Code);
        return nexus;
    }

    /// <summary>Begins a command given in hexadecimal; the answer comes when the loop has run.</summary>
    public Reply Begin(
        ScsiNexus nexus, string cdb, byte[]? data = null, ulong lun = 0, TaskAttribute attribute = TaskAttribute.Simple, int offered = -1)
    {
        byte[] bytes = Hex(cdb);
        var command = new ScsiCommand { Nexus = nexus, Lun = lun, Tag = ++_tag, Attribute = attribute };
        bytes.CopyTo(command.Cdb, 0);
        command.CdbLength = Math.Max(16, bytes.Length);
        ScsiPlan plan = Target.Plan(command);
        command.OutOfferedBytes = offered >= 0 ? offered : data?.Length ?? 0;
        if (data is not null && !plan.IsRefused)
        {
            command.OutLength = Math.Min(data.Length, plan.OutBytes);
            command.OutStart = plan.Lead;
            command.OutBuffer = Loop.Buffers.TryRent(plan.Lead + Math.Max(1, command.OutLength));
            data.AsSpan(0, command.OutLength).CopyTo(command.OutBuffer!.Slice(plan.Lead, command.OutLength).Span);
        }

        var reply = new Reply(command, plan);
        Run(reply);
        return reply;
    }

    /// <summary>Sends a command and waits for its answer.</summary>
    public Reply Send(ScsiNexus nexus, string cdb, byte[]? data = null, ulong lun = 0, int offered = -1)
    {
        Reply reply = Begin(nexus, cdb, data, lun, offered: offered);
        Assert.True(Loop.RunUntil(() => reply.IsDone) || reply.IsDone);
        return reply;
    }

    public Reply Good(ScsiNexus nexus, string cdb, byte[]? data = null, int offered = -1)
    {
        Reply reply = Send(nexus, cdb, data, offered: offered);
        Assert.True(reply.Status == ScsiStatus.Good, $"{cdb}: {reply}");
        return reply;
    }

    /// <summary>Expects CHECK CONDITION with "key/asc/ascq".</summary>
    public Reply Bad(ScsiNexus nexus, string cdb, string sense, byte[]? data = null, int offered = -1)
    {
        Reply reply = Send(nexus, cdb, data, offered: offered);
        Assert.True(reply.Sense == sense, $"{cdb}: {reply} instead of {sense}");
        return reply;
    }

    public void Conflict(ScsiNexus nexus, string cdb, byte[]? data = null) =>
        Assert.Equal(ScsiStatus.ReservationConflict, Send(nexus, cdb, data).Status);

    /// <summary>What the disk holds.</summary>
    public byte[] Stored(ulong offset, int length)
    {
        var bytes = new byte[length];
        Assert.Equal(IoStatus.Ok, Loop.Run(Device.ReadAsync(offset, bytes)).Status);
        return bytes;
    }

    public static byte[] Hex(string text) => Convert.FromHexString(text.Replace(" ", "", StringComparison.Ordinal));

    public static byte[] Fill(int length, byte value)
    {
        var bytes = new byte[length];
        bytes.AsSpan().Fill(value);
        return bytes;
    }

    public static string U32(ulong value) => ((uint)value).ToString("X8", CultureInfo.InvariantCulture);

    public static string U64(ulong value) => value.ToString("X16", CultureInfo.InvariantCulture);

    /// <summary>READ, WRITE and the like (16): opcode, flags, LBA, blocks.</summary>
    public static string Cdb16(byte opcode, ulong lba, ulong blocks, byte flags = 0) =>
        $"{opcode:X2}{flags:X2}{U64(lba)}{U32(blocks)}0000";

    /// <summary>The same with 10 bytes.</summary>
    public static string Cdb10(byte opcode, ulong lba, ulong blocks, byte flags = 0) =>
        $"{opcode:X2}{flags:X2}{U32(lba)}00{(ushort)blocks:X4}00";

    private async void Run(Reply reply)
    {
        reply.IsAnswered = await Target.ExecuteAsync(reply.Command);
        ScsiCommand command = reply.Command;
        if (command.InBuffer is not null)
        {
            reply.Data = command.InBuffer.Slice(command.InStart, command.InLength).ToArray();
            command.InBuffer.Return();
        }

        command.OutBuffer?.Return();
        reply.IsDone = true;
    }
}

/// <summary>The answer to one command.</summary>
internal sealed class Reply(ScsiCommand command, ScsiPlan plan)
{
    public ScsiCommand Command { get; } = command;

    public ScsiPlan Plan { get; } = plan;

    public bool IsDone { get; set; }

    public bool IsAnswered { get; set; }

    public byte[] Data { get; set; } = [];

    public ScsiStatus Status => Command.Status;

    public byte[] SenseBytes => Command.Sense.AsSpan(0, Command.SenseLength).ToArray();

    /// <summary>ASC and ASCQ, fixed format.</summary>
    public int Code => Command.SenseLength == 0 ? -1 : BinaryPrimitives.ReadUInt16BigEndian(Command.Sense.AsSpan(12));

    /// <summary>"05/24/00", or the status.</summary>
    public string Sense => Status != ScsiStatus.CheckCondition
        ? Status.ToString() : $"{Command.Sense[2] & 0xF:X2}/{Command.Sense[12]:X2}/{Command.Sense[13]:X2}";

    public string Text => Convert.ToHexString(Data);

    public override string ToString() => $"{Sense} {Text}";
}
