using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4, 6.4 and 6.18 to 6.20). Source and destination are looked up
/// among the units that the nexus may use, and each is asked, for every piece, whether the nexus uses it still and its reservations
/// allow it: a copy reaches nothing that the initiator could not reach with READ and WRITE (CVE-2020-28374). The copy runs on the
/// loop of the unit that was asked for it; what it does in a unit of another loop it does there (<see cref="CopyEnd"/>).
/// </summary>
public sealed partial class LogicalUnit
{
    private const int CopyHeaderBytes = 16, CopyTargetBytes = 32;
    private const byte TargetIdentification = 0xE4, SegmentBlocks = 0x02, SegmentOffsets = 0x0A;

    private int _copies;

    private static Sense Unreachable => new(SenseKey.CopyAborted, 0x0804);

    private static Sense NotReachable => new(SenseKey.CopyAborted, 0x0D02);

    private async ValueTask<ScsiResult> ExtendedCopyAsync(ScsiCommand command, UnitNexus nexus)
    {
        uint length = TransferPlan.ListOf(command.Cdb)!.Value;
        if (length == 0) return ScsiResult.Good;
        if (length < CopyHeaderBytes || length > (uint)command.OutLength) return Sense.ListLength;
        ReadOnlyMemory<byte> list = command.DataOut[..(int)length];
        if (ListFault(list.Span, out CopyPlan plan) is { } fault) return fault;
        if (_copies >= CopyLimits.ConcurrentMax) return new ScsiResult(ScsiStatus.Busy, default);

        plan = plan with { Units = command.CopyUnits ?? nexus.Target.UnitsOf(nexus.Nexus) };
        var result = new CopyResult(list.Span[0]);
        int usage = (list.Span[1] >> 3) & 3;
        if (usage == 3 && list.Span[0] != 0) return Sense.InList(0);
        List<CopyResult> kept = nexus.Copies ??= [];
        if (usage != 3)
        {
            if (kept.Exists(r => !r.IsDone && r.ListId == result.ListId)) return new Sense(SenseKey.IllegalRequest, 0x2300);
            kept.RemoveAll(r => r.ListId == result.ListId);
            if (kept.Count == CopyLimits.ResultsMax) kept.RemoveAt(0);
            kept.Add(result);
        }

        _copies++;
        try
        {
            for (int i = 0; i < plan.Segments.Count && result.Failure is null && !command.IsAborted; i++)
            {
                result.Failure = await CopySegmentAsync(command, plan, list, plan.Segments[i], result);
                if (result.Failure is null && !command.IsAborted) result.SegmentsDone++;
            }
        }
        finally
        {
            _copies--;
            result.IsDone = true;
            if (usage == 2 && result.Failure is null) kept.Remove(result);
        }

        return result.Failure is { } failure ? failure : ScsiResult.Good;
    }

    /// <summary>List ids, counts, lengths and kinds; where the segments are. Nothing is touched before all of it is right.</summary>
    private static Sense? ListFault(ReadOnlySpan<byte> list, out CopyPlan plan)
    {
        int targets = BinaryPrimitives.ReadUInt16BigEndian(list[2..]);
        uint segments = BinaryPrimitives.ReadUInt32BigEndian(list[8..]), inline = BinaryPrimitives.ReadUInt32BigEndian(list[12..]);
        plan = new CopyPlan(targets / CopyTargetBytes, [], []);
        if ((ulong)targets + segments > CopyLimits.ListBytesMax) return Sense.ListLength;
        if (CopyHeaderBytes + (ulong)targets + segments + inline > (ulong)list.Length) return Sense.ListLength;
        if (inline != 0) return new Sense(SenseKey.IllegalRequest, 0x260B); // inline data length exceeded
        if (targets % CopyTargetBytes != 0) return Sense.InList(2);
        if (plan.Targets > CopyLimits.TargetsMax) return new Sense(SenseKey.IllegalRequest, 0x2606);
        for (int i = 0; i < plan.Targets; i++)
        {
            ReadOnlySpan<byte> target = list.Slice(CopyHeaderBytes + i * CopyTargetBytes, CopyTargetBytes);
            if (target[0] != TargetIdentification) return new Sense(SenseKey.IllegalRequest, 0x2607);
            if ((target[1] & 0x1F) != 0 || target[7] > 20) return Sense.InList(CopyHeaderBytes + i * CopyTargetBytes + 1);
        }

        int end = CopyHeaderBytes + targets + (int)segments;
        for (int at = CopyHeaderBytes + targets; at < end;)
        {
            if (plan.Segments.Count == CopyLimits.SegmentsMax) return new Sense(SenseKey.IllegalRequest, 0x2608);
            int wanted = list[at] switch { SegmentBlocks => 0x18, SegmentOffsets => 0x1C, _ => -1 };
            if (wanted < 0) return new Sense(SenseKey.IllegalRequest, 0x2609);
            if (end - at < 4 + wanted) return Sense.ListLength;
            if (BinaryPrimitives.ReadUInt16BigEndian(list[(at + 2)..]) != wanted) return Sense.InList(at + 2);
            plan.Segments.Add(at);
            at += 4 + wanted;
        }

        return null;
    }

    /// <summary>Null when it is copied. Opens both ends, moves piece by piece and closes them, each on the loop of its unit.</summary>
    private async ValueTask<Sense?> CopySegmentAsync(ScsiCommand command, CopyPlan plan, ReadOnlyMemory<byte> list, int at, CopyResult result)
    {
        if (CopyEnds(list.Span, plan, at, out CopyEnd source, out CopyEnd target, out ulong length) is { } fault) return fault;
        if (length > CopyLimits.SegmentBytesMax) return Sense.InList(at + 8);
        IoBuffer? buffer = length == 0 ? null : await RentWorkAsync(length);
        try
        {
            if (await OnLoopOf(source, u => u.OpenCopyEndAsync(source, length)) is { } noSource) return noSource;
            try
            {
                if (await OnLoopOf(target, u => u.OpenCopyEndAsync(target, length)) is { } noTarget) return noTarget;
                try
                {
                    return buffer is null ? null : await CopyPiecesAsync(command, source, target, length, buffer, result);
                }
                finally
                {
                    await CloseAsync(target);
                }
            }
            finally
            {
                await CloseAsync(source);
            }
        }
        finally
        {
            buffer?.Return();
        }
    }

    private async ValueTask<Sense?> CopyPiecesAsync(
        ScsiCommand command, CopyEnd source, CopyEnd target, ulong length, IoBuffer buffer, CopyResult result)
    {
        LogicalUnit from = source.Unit, to = target.Unit;
        ulong start = from.OffsetOf(source), end = to.OffsetOf(target);
        bool isBackward = from == to && end > start && end < start + length; // as if through a buffer of the whole length
        for (ulong done = 0; done < length && !command.IsAborted;)
        {
            int count = (int)Math.Min(length - done, WorkBytes);
            ulong skip = isBackward ? length - done - (ulong)count : done;
            Memory<byte> piece = buffer.Slice(0, count);
            CopiedPiece read = await OnLoopOf(source, u => u.ReadCopyPieceAsync(source, skip, piece));
            if (read.Fault is not null) return read.Fault;
            if (command.IsAborted) return null;
            CopiedPiece written = await OnLoopOf(target, u => u.WriteCopyPieceAsync(target, skip, piece, read.HasHoles));
            if (written.Fault is not null) return written.Fault;
            done += (ulong)count;
            result.BytesDone += (ulong)count;
        }

        return null;
    }

    private ValueTask<T> OnLoopOf<T>(CopyEnd end, Func<LogicalUnit, ValueTask<T>> work) =>
        LoopCall.RunAsync(_loop, end.Unit._loop, () => work(end.Unit));

    private async ValueTask CloseAsync(CopyEnd end) => await OnLoopOf(end, unit =>
    {
        unit.CloseCopyEnd(end);
        return new ValueTask<bool>(true);
    });

    private static Sense? CopyEnds(ReadOnlySpan<byte> list, CopyPlan plan, int at, out CopyEnd source, out CopyEnd target, out ulong length)
    {
        (source, target, length) = (null!, null!, 0);
        ReadOnlySpan<byte> segment = list[at..];
        int sourceIndex = BinaryPrimitives.ReadUInt16BigEndian(segment[4..]), targetIndex = BinaryPrimitives.ReadUInt16BigEndian(segment[6..]);
        if (sourceIndex >= plan.Targets || targetIndex >= plan.Targets) return Unreachable;
        UnitNexus? from = FindCopyUnit(plan.Units, list, sourceIndex), to = FindCopyUnit(plan.Units, list, targetIndex);
        if (from is null || to is null) return NotReachable;
        if (BlockBytesDiffer(list, sourceIndex, from.Unit) || BlockBytesDiffer(list, targetIndex, to.Unit))
            return Sense.InList(CopyHeaderBytes + 29);
        ulong sourceLba = BinaryPrimitives.ReadUInt64BigEndian(segment[12..]), targetLba = BinaryPrimitives.ReadUInt64BigEndian(segment[20..]);
        uint sourceSkip = 0, targetSkip = 0;
        if (segment[0] == SegmentOffsets)
        {
            length = BinaryPrimitives.ReadUInt32BigEndian(segment[8..]);
            sourceSkip = BinaryPrimitives.ReadUInt16BigEndian(segment[28..]);
            targetSkip = BinaryPrimitives.ReadUInt16BigEndian(segment[30..]);
        }
        else
        {
            bool countsTarget = (segment[1] & 0x02) != 0; // DC
            length = (ulong)BinaryPrimitives.ReadUInt16BigEndian(segment[10..]) << (countsTarget ? to : from).Unit._blockShift;
        }

        source = new CopyEnd(from, sourceLba, sourceSkip, isDestination: false);
        target = new CopyEnd(to, targetLba, targetSkip, isDestination: true);
        return null;
    }

    private static UnitNexus? FindCopyUnit(IReadOnlyList<UnitNexus> units, ReadOnlySpan<byte> list, int index)
    {
        ReadOnlySpan<byte> designator = list.Slice(CopyHeaderBytes + index * CopyTargetBytes + 4, 24);
        foreach (UnitNexus unit in units)
        {
            if (unit.Unit.HasDesignator(designator)) return unit;
        }

        return null;
    }

    /// <summary>The descriptor may say how long blocks are; it must be right then.</summary>
    private static bool BlockBytesDiffer(ReadOnlySpan<byte> list, int index, LogicalUnit unit)
    {
        uint said = BinaryPrimitives.ReadUInt32BigEndian(list[(CopyHeaderBytes + index * CopyTargetBytes + 28)..]) & 0xFFFFFF;
        return said != 0 && said != (uint)unit._blockBytes;
    }

    private ValueTask<ScsiResult> ReceiveCopy(ScsiCommand command, UnitNexus nexus, CommandEntry entry)
    {
        byte[] cdb = command.Cdb;
        Span<byte> data = _scratch;
        data[..64].Clear();
        if (entry.Action == 3) return DataIn.Reply(_loop, command, _scratch, WriteOperatingParameters(data), TransferPlan.AllocationOf(cdb));
        CopyResult? result = nexus.Copies?.FindLast(r => r.ListId == cdb[2]);
        if (result is null || (entry.Action == 4 && !result.IsDone)) return new(Sense.InCdb(2));
        int length = entry.Action == 0 ? WriteCopyStatus(data, result) : WriteFailedSegment(data, result);
        if (result.IsDone) nexus.Copies!.Remove(result);
        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(cdb));
    }

    /// <summary>Length u32, status (0 runs, 1 done, 2 failed), segments u16, unit of the count (0: bytes), count u32.</summary>
    private static int WriteCopyStatus(Span<byte> data, CopyResult result)
    {
        data[3] = 8;
        data[4] = (byte)(!result.IsDone ? 0 : result.Failure is null ? 1 : 2);
        BinaryPrimitives.WriteUInt16BigEndian(data[5..], result.SegmentsDone);
        ulong count = result.BytesDone;
        while (count > uint.MaxValue)
        {
            count >>= 10;
            data[7]++; // KiB, MiB
        }

        BinaryPrimitives.WriteUInt32BigEndian(data[8..], (uint)count);
        return 12;
    }

    /// <summary>Nothing (length 0) when none failed; else 56 bytes of zeros, length of the sense data, the sense data.</summary>
    private static int WriteFailedSegment(Span<byte> data, CopyResult result)
    {
        if (result.Failure is not { } failure) return 4;
        data[..128].Clear();
        data[56] = (byte)ScsiStatus.CheckCondition;
        int sense = failure.WriteTo(data[60..], false);
        BinaryPrimitives.WriteUInt16BigEndian(data[58..], (ushort)sense);
        BinaryPrimitives.WriteUInt32BigEndian(data, (uint)(56 + sense));
        return 60 + sense;
    }

    private static int WriteOperatingParameters(Span<byte> data)
    {
        data[3] = 43;
        data[4] = 0x01; // SNLID: a list may have no id
        data[9] = CopyLimits.TargetsMax;
        data[11] = CopyLimits.SegmentsMax;
        BinaryPrimitives.WriteUInt32BigEndian(data[12..], CopyLimits.ListBytesMax);
        BinaryPrimitives.WriteUInt32BigEndian(data[16..], CopyLimits.SegmentBytesMax);
        data[35] = CopyLimits.ConcurrentMax;
        data[36] = CopyLimits.ConcurrentMax;
        data[37] = 9; // data segments count in 512 bytes
        data[43] = 3;
        (data[44], data[45], data[46]) = (SegmentBlocks, SegmentOffsets, TargetIdentification);
        return 47;
    }

    /// <summary>A checked list: how many targets, where each segment is, and the units that the nexus may use.</summary>
    private readonly record struct CopyPlan(int Targets, List<int> Segments, IReadOnlyList<UnitNexus> Units);
}
