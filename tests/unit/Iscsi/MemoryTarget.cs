using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>A disk of 512-byte blocks in RAM that knows TEST UNIT READY, INQUIRY, READ(10) and WRITE(10): just enough to
/// see the transport work. Lives on one loop.</summary>
internal sealed class MemoryTarget(ILoop loop, int blocks) : IScsiTarget
{
    private readonly List<ScsiCommand> _running = [];

    public byte[] Disk { get; } = new byte[blocks * 512];

    public List<ScsiNexus> Nexuses { get; } = [];

    /// <summary>Commands wait until it is completed.</summary>
    public LoopEvent<bool>? Gate { get; set; }

    public List<byte> Executed { get; } = [];

    public List<int> OutLengths { get; } = [];

    public List<(TaskFunction Function, uint Tag)> Managed { get; } = [];

    public bool IsBroken { get; set; }

    /// <summary>The doors that reads and writes pass, by the field of the LUN.</summary>
    public Dictionary<ulong, VolumeAdmission> Doors { get; } = [];

    public void AddNexus(ScsiNexus nexus) => Nexuses.Add(nexus);

    public void RemoveNexus(ScsiNexus nexus)
    {
        Check.That(Nexuses.Remove(nexus));
        foreach (ScsiCommand command in _running.Where(c => c.Nexus == nexus)) command.IsAborted = true;
    }

    public ScsiPlan Plan(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        int bytes = BinaryPrimitives.ReadUInt16BigEndian(cdb.AsSpan(7)) * 512;
        int lead = (int)(BinaryPrimitives.ReadUInt32BigEndian(cdb.AsSpan(2)) * 512UL % 4096);
        return cdb[0] switch
        {
            0x00 => default,
            0x12 => new ScsiPlan(0, BinaryPrimitives.ReadUInt16BigEndian(cdb.AsSpan(3)), 0, false),
            0x28 => new ScsiPlan(0, bytes, lead, false) { Admission = Doors.GetValueOrDefault(command.Lun), ChargedBytes = (uint)bytes, HasOtherUnits = Doors.Count > 1 },
            0x2A => new ScsiPlan(bytes, 0, lead, false) { Admission = Doors.GetValueOrDefault(command.Lun), ChargedBytes = (uint)bytes, HasOtherUnits = Doors.Count > 1 },
            _ => new ScsiPlan(0, 0, 0, true),
        };
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<bool> ExecuteAsync(ScsiCommand command)
    {
        if (IsBroken) throw new InvalidOperationException("broken on purpose");
        byte[] cdb = command.Cdb;
        if (Executed.Count < Executed.Capacity || Executed.Count < 1000) Executed.Add(cdb[0]);
        if (Gate is not null)
        {
            _running.Add(command);
            while (Gate is { IsSet: false }) await loop.DelayAsync(1_000_000);
            _running.Remove(command);
            if (command.IsAborted) return false;
        }

        switch (cdb[0])
        {
            case 0x00:
                return true;
            case 0x12:
                Give(command, 36, 0);
                command.InBuffer!.Slice(0, 36).Span.Clear();
                "BLOCKSRV"u8.CopyTo(command.InBuffer.Slice(8, 8).Span);
                command.InLength = Math.Min(36, (int)BinaryPrimitives.ReadUInt16BigEndian(cdb.AsSpan(3)));
                return true;
            case 0x28 or 0x2A:
                Move(command, cdb[0] == 0x28);
                return true;
            default:
                Fail(command, 0x05, 0x20);
                return true;
        }
    }

    public async ValueTask<TaskFunctionResponse> ManageAsync(ScsiNexus nexus, TaskFunction function, ulong lun, uint tag)
    {
        Managed.Add((function, tag));
        if (function == TaskFunction.ClearAca) return TaskFunctionResponse.NotSupported;
        if (lun != 0 && function is not (TaskFunction.TargetWarmReset or TaskFunction.TargetColdReset)) return TaskFunctionResponse.NoLun;
        List<ScsiCommand> hit = [.. _running.Where(c => !c.IsSpared && function switch
        {
            TaskFunction.AbortTask => c.Nexus == nexus && c.Tag == tag,
            TaskFunction.AbortTaskSet => c.Nexus == nexus,
            _ => true,
        })];
        if (hit.Count == 0 && function == TaskFunction.AbortTask) return TaskFunctionResponse.NoTask;
        foreach (ScsiCommand command in hit) command.IsAborted = true;
        while (_running.Intersect(hit).Any() && Gate is { IsSet: false })
        {
            Gate.Set(true);
            await loop.DelayAsync(3_000_000);
        }

        return TaskFunctionResponse.Complete;
    }

    private void Move(ScsiCommand command, bool isRead)
    {
        ulong offset = BinaryPrimitives.ReadUInt32BigEndian(command.Cdb.AsSpan(2)) * 512UL;
        int length = BinaryPrimitives.ReadUInt16BigEndian(command.Cdb.AsSpan(7)) * 512;
        if (offset > (ulong)Disk.Length || (ulong)length > (ulong)Disk.Length - offset)
        {
            Fail(command, 0x05, 0x21);
            return;
        }

        if (isRead)
        {
            if (length == 0) return;
            Give(command, length, (int)(offset % 4096));
            Disk.AsSpan((int)offset, length).CopyTo(command.InBuffer!.Slice(command.InStart, length).Span);
            return;
        }

        if (OutLengths.Count < 1000) OutLengths.Add(command.OutLength);
        command.DataOut.Span.CopyTo(Disk.AsSpan((int)offset));
    }

    private void Give(ScsiCommand command, int length, int lead)
    {
        command.InBuffer = loop.Buffers.TryRent(lead + length);
        Check.That(command.InBuffer is not null);
        (command.InStart, command.InLength) = (lead, length);
    }

    private static void Fail(ScsiCommand command, byte key, byte code)
    {
        command.Status = ScsiStatus.CheckCondition;
        command.Sense.AsSpan().Clear();
        command.Sense[0] = 0x70;
        command.Sense[2] = key;
        command.Sense[7] = 10;
        command.Sense[12] = code;
        command.SenseLength = 18;
    }
}
