using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>What moves data: the plan, READ, WRITE, and the commands around the cache.</summary>
public sealed partial class LogicalUnit
{
    /// <summary>The plan, and the door of the volume for what reads or changes the medium. SYNCHRONIZE CACHE passes none: what it
    /// covers has.</summary>
    internal ScsiPlan PlanAndCharge(ScsiCommand command)
    {
        ScsiPlan plan = Plan(command);
        if (_options.Admission is not { } door || plan.IsRefused) return plan;
        switch (command.Cdb[0])
        {
            case ScsiOp.Unmap or ScsiOp.ExtendedCopy or ScsiOp.Prefetch10 or ScsiOp.Prefetch16: // what they transfer is no data
                return plan with { Admission = door };
            case ScsiOp.Read6 or ScsiOp.Read10 or ScsiOp.Read12 or ScsiOp.Read16 or ScsiOp.Write6 or ScsiOp.Write10 or ScsiOp.Write12
                or ScsiOp.Write16 or ScsiOp.WriteAtomic16 or ScsiOp.WriteVerify10 or ScsiOp.WriteVerify12 or ScsiOp.WriteVerify16
                or ScsiOp.Verify10 or ScsiOp.Verify12 or ScsiOp.Verify16 or ScsiOp.WriteSame10 or ScsiOp.WriteSame16
                or ScsiOp.CompareAndWrite or ScsiOp.OrWrite:
                return plan with { Admission = door, ChargedBytes = (uint)(plan.OutBytes + plan.InBytesMax) };
            default:
                return plan;
        }
    }

    /// <summary>See <see cref="IScsiTarget.Plan"/>. Any thread.</summary>
    internal ScsiPlan Plan(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        CommandEntry? entry = Find(cdb[0], cdb[1]);
        if (entry is null) return new ScsiPlan(0, 0, 0, true);
        if (TransferPlan.ListOf(cdb) is { } list)
            return new ScsiPlan((int)Math.Min(list, TransferPlan.ListBytesMax), 0, 0, list > TransferPlan.ListBytesMax);
        if ((entry.Traits & (Traits.Medium | Traits.Changes)) == 0 || entry.Opcode is ScsiOp.ServiceIn16 or ScsiOp.ReadCapacity10
            or ScsiOp.ReadDefects10 or ScsiOp.ReadDefects12)
            return new ScsiPlan(0, TransferPlan.AllocationOf(cdb), 0, false);

        BlockRange range = BlockRange.Of(cdb);
        if (Fault(cdb, range) is not null) return new ScsiPlan(0, 0, 0, true);
        int bytes = (int)Math.Min((ulong)range.Blocks << _blockShift, Units.RequestBytesMax), lead = LeadOf(range);
        switch (entry.Opcode)
        {
            case ScsiOp.Read6 or ScsiOp.Read10 or ScsiOp.Read12 or ScsiOp.Read16:
                return new ScsiPlan(0, bytes, 0, false);
            case ScsiOp.Prefetch10 or ScsiOp.Prefetch16 or ScsiOp.SyncCache10 or ScsiOp.SyncCache16:
                return default;
            case ScsiOp.Verify10 or ScsiOp.Verify12 or ScsiOp.Verify16:
                return new ScsiPlan(ByteCheck(cdb) switch { 1 => bytes, 3 => _blockBytes, _ => 0 }, 0, 0, false);
            case ScsiOp.WriteSame10 or ScsiOp.WriteSame16:
                return new ScsiPlan(HasNoData(cdb) ? 0 : _blockBytes, 0, 0, false);
            case ScsiOp.CompareAndWrite: // the half that is written lies as the device wants it
                return new ScsiPlan(2 * bytes, 0, (lead - bytes) & (Units.BlockBytes - 1), false);
            default:
                return new ScsiPlan(bytes, 0, lead, false);
        }
    }

    /// <summary>Memory that the Data-In of a command needs at most, bytes; <paramref name="isMedium"/>: it is data of the medium.
    /// Any thread, as <see cref="Plan"/>.</summary>
    internal int InBytesOf(ScsiCommand command, out bool isMedium)
    {
        ScsiPlan plan = Plan(command);
        isMedium = command.Cdb[0] is ScsiOp.Read6 or ScsiOp.Read10 or ScsiOp.Read12 or ScsiOp.Read16;
        return plan.InBytesMax == 0 || !isMedium ? plan.InBytesMax : LeadOf(BlockRange.Of(command.Cdb)) + plan.InBytesMax;
    }

    private static int ByteCheck(byte[] cdb) => (cdb[1] >> 1) & 3;

    private int LeadOf(in BlockRange range) => (int)(range.Lba << _blockShift) & (Units.BlockBytes - 1);

    private ulong OffsetOf(in BlockRange range) => range.Lba << _blockShift;

    /// <summary>What is wrong with the address and length of a command, or null. The same for the plan and the command.</summary>
    private Sense? Fault(byte[] cdb, in BlockRange range)
    {
        byte opcode = cdb[0];
        bool isShort = opcode is ScsiOp.Read6 or ScsiOp.Write6;
        bool hasProtection = !isShort && opcode is not (ScsiOp.Prefetch10 or ScsiOp.Prefetch16 or ScsiOp.SyncCache10 or ScsiOp.SyncCache16);
        if (hasProtection && cdb[1] >> 5 != 0) return Sense.InCdb(1, 7);
        if (range.Lba > CapacityBlocks || range.Blocks > CapacityBlocks - range.Lba) return Sense.OutOfRange;
        switch (opcode)
        {
            case ScsiOp.Prefetch10 or ScsiOp.Prefetch16 or ScsiOp.SyncCache10 or ScsiOp.SyncCache16:
                return null;
            case ScsiOp.WriteSame10 or ScsiOp.WriteSame16:
                return WriteSameFault(cdb, range);
            case ScsiOp.CompareAndWrite:
                return range.Blocks > _options.CompareAndWriteBlocksMax ? Sense.InCdb(range.LengthAt) : null;
            case ScsiOp.WriteAtomic16:
                if ((cdb[10] | cdb[11]) != 0) return Sense.InCdb(10); // no atomic boundaries
                return range.Blocks > AtomicBlocksMax ? Sense.InCdb(range.LengthAt) : null;
            case ScsiOp.Verify10 or ScsiOp.Verify12 or ScsiOp.Verify16:
                if (ByteCheck(cdb) == 2) return Sense.InCdb(1, 2);
                return ByteCheck(cdb) == 1 && range.Blocks > TransferBlocksMax ? Sense.InCdb(range.LengthAt) : null;
            case ScsiOp.WriteVerify10 or ScsiOp.WriteVerify12 or ScsiOp.WriteVerify16:
                if (ByteCheck(cdb) > 1) return Sense.InCdb(1, 2);
                return range.Blocks > TransferBlocksMax ? Sense.InCdb(range.LengthAt) : null;
            default:
                return range.Blocks > TransferBlocksMax ? Sense.InCdb(range.LengthAt) : null;
        }
    }

    /// <summary>What a device's answer is called here.</summary>
    private static ScsiResult Failure(IoStatus status, bool isWrite)
    {
        switch (status)
        {
            case IoStatus.Ok:
                return ScsiResult.Good;
            case IoStatus.OutOfRange:
                return Sense.OutOfRange;
            case IoStatus.ReadOnly:
                return new Sense(SenseKey.DataProtect, 0x2700);
            case IoStatus.NoSpace:
                return new Sense(SenseKey.DataProtect, 0x2707);
            case IoStatus.Corrupt or IoStatus.IoError:
                return new Sense(SenseKey.MediumError, isWrite ? (ushort)0x0C00 : (ushort)0x1100);
            case IoStatus.ShuttingDown:
                return new ScsiResult(ScsiStatus.Busy, default);
            case IoStatus.Unavailable:
                return new Sense(SenseKey.NotReady, 0x0403); // manual intervention required
            default:
                return new Sense(SenseKey.HardwareError, 0x4400);
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> ReadAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        int bytes = (int)(range.Blocks << _blockShift), lead = LeadOf(range);
        if (bytes == 0) return ScsiResult.Good;
        IoBuffer buffer = command.Lent ?? _loop.Buffers.TryRent(lead + bytes) ?? await _loop.Buffers.RentAsync(lead + bytes);
        ReadResult read = await _device.ReadAsync(OffsetOf(range), buffer.Slice(lead, bytes));
        if (read.Status != IoStatus.Ok)
        {
            if (buffer != command.Lent) buffer.Return();
            return Failure(read.Status, isWrite: false);
        }

        (command.InBuffer, command.InStart, command.InLength) = (buffer, lead, bytes);
        return ScsiResult.Good;
    }

    /// <summary>WRITE and WRITE ATOMIC. When the initiator offered less than the CDB names, all that came is written and the
    /// transport reports the residual (the conformance suite writes 512 bytes to blocks of 4096 and wants GOOD); what is to
    /// be atomic is refused then.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> WriteAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        int bytes = Math.Min((int)(range.Blocks << _blockShift), command.OutLength);
        if (command.Cdb[0] == ScsiOp.WriteAtomic16 && bytes != (int)(range.Blocks << _blockShift)) return Sense.PartialBlock;
        if (bytes == 0) return ScsiResult.Good;
        VolumeGate.Range held = _gate.Take(OffsetOf(range), (ulong)bytes, false, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (command.IsAborted) return ScsiResult.Good;
            WriteFlags flags = WriteFlagsOf(command.Cdb);
            return Failure(await _device.WriteAsync(OffsetOf(range), command.DataOut[..bytes], flags), isWrite: true);
        }
        finally
        {
            _gate.Release(held);
        }
    }

    /// <summary>How many bytes to take: those of the CDB, or the whole blocks that came.</summary>
    private Sense? PayloadFault(ScsiCommand command, in BlockRange range, out int bytes)
    {
        bytes = Math.Min((int)(range.Blocks << _blockShift), command.OutLength);
        return (bytes & (_blockBytes - 1)) == 0 ? null : Sense.PartialBlock;
    }

    /// <summary>FUA when asked for, and always while the write cache is switched off.</summary>
    private WriteFlags WriteFlagsOf(byte[] cdb)
    {
        bool hasFlag = cdb[0] is ScsiOp.Write10 or ScsiOp.Write12 or ScsiOp.Write16 or ScsiOp.WriteAtomic16
            or ScsiOp.OrWrite or ScsiOp.CompareAndWrite;
        return hasFlag && (cdb[1] & 0x08) != 0 ? WriteFlags.Fua : CacheFlags;
    }

    private WriteFlags CacheFlags =>
        _modes.HasWriteCache || _options.Durability == Durability.Ack ? WriteFlags.None : WriteFlags.Fua;

    /// <summary>The range is checked, and everything is flushed: the device knows no ranges. IMMED is allowed to wait.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> SyncCacheAsync(ScsiCommand command, UnitNexus nexus)
    {
        if (Fault(command.Cdb, BlockRange.Of(command.Cdb)) is { } fault) return fault;
        return IsProtected(nexus) ? ScsiResult.Good : Failure(await _device.FlushAsync(), isWrite: true);
    }

    /// <summary>GOOD, not CONDITION MET: nothing promises that the blocks stay. Zero blocks (all up to the end) is too much to fetch and does nothing.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> PrefetchAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        ulong bytes = (ulong)range.Blocks << _blockShift;
        if (range.Blocks == 0) return ScsiResult.Good;
        IoStatus status = await _device.PrefetchAsync(OffsetOf(range), bytes);
        return Failure(status, isWrite: false);
    }
}
