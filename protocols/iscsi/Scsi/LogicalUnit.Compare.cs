using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Commands that look at what is stored: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE.</summary>
public sealed partial class LogicalUnit
{
    /// <summary>Piece in which long commands are worked off, bytes.</summary>
    private const int WorkBytes = 1 << 20;

    private readonly BufferPool _work = new(0);

    /// <summary>BYTCHK 0: readable with good checksums; 1: equal to the data; 3: every block equal to the one of the data.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> VerifyAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        int check = ByteCheck(command.Cdb);
        ulong left = (ulong)range.Blocks << _blockShift, offset = OffsetOf(range);
        if (check == 1)
        {
            if (PayloadFault(command, range, out int came) is { } wrong) return wrong;
            left = (ulong)came;
        }
        else if (check == 3 && command.OutLength < _blockBytes)
        {
            return command.OutLength == 0 ? ScsiResult.Good : Sense.PartialBlock;
        }

        if (left == 0) return ScsiResult.Good;
        IoBuffer buffer = await RentWorkAsync(left);
        try
        {
            return await CompareAsync(command, buffer, offset, left, check);
        }
        finally
        {
            buffer.Return();
        }
    }

    /// <summary>Memory beside a command's own. It comes from the unit's pool: whoever waits for the loop's pool while holding
    /// Data-Out of it could wait for ever. Rented before a range is locked, for the same reason.</summary>
    private ValueTask<IoBuffer> RentWorkAsync(ulong length) => _work.RentAsync((int)Math.Min(length, WorkBytes));

    /// <summary>Compares piece by piece, as large as the buffer allows.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> CompareAsync(
        ScsiCommand command, IoBuffer buffer, ulong offset, ulong length, int check)
    {
        int chunk = (int)Math.Min(length, WorkBytes);
        for (ulong done = 0; done < length && !command.IsAborted; done += (ulong)chunk)
        {
            int count = (int)Math.Min(length - done, (ulong)chunk);
            Memory<byte> stored = buffer.Slice(0, count);
            ReadResult read = await _device.ReadAsync(offset + done, stored);
            if (read.Status != IoStatus.Ok) return Failure(read.Status, isWrite: false);
            int differs = check switch
            {
                1 => FirstDifference(stored.Span, command.DataOut.Span.Slice((int)done, count)),
                3 => FirstOtherBlock(stored.Span, command.DataOut.Span[.._blockBytes]),
                _ => -1,
            };
            if (differs >= 0) return Sense.Miscompare(check == 3 ? differs & (_blockBytes - 1) : (int)done + differs);
        }

        return ScsiResult.Good;
    }

    private static int FirstDifference(ReadOnlySpan<byte> stored, ReadOnlySpan<byte> given)
    {
        int same = stored.CommonPrefixLength(given);
        return same == given.Length ? -1 : same;
    }

    private static int FirstOtherBlock(ReadOnlySpan<byte> stored, ReadOnlySpan<byte> block)
    {
        for (int at = 0; at < stored.Length; at += block.Length)
        {
            int same = stored.Slice(at, block.Length).CommonPrefixLength(block);
            if (same != block.Length) return at + same;
        }

        return -1;
    }

    /// <summary>Writes durably, then reads back: BYTCHK 0 checks the checksums, 1 every byte.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> WriteVerifyAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        int bytes = Math.Min((int)(range.Blocks << _blockShift), command.OutLength); // as WRITE
        if (bytes == 0) return ScsiResult.Good;
        ulong offset = OffsetOf(range);
        IoBuffer buffer = await RentWorkAsync((ulong)bytes);
        VolumeGate.Range held = _gate.Take(offset, (ulong)bytes, true, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (command.IsAborted) return ScsiResult.Good;
            IoStatus status = await _device.WriteAsync(offset, command.DataOut[..bytes], WriteFlags.Fua);
            if (status != IoStatus.Ok) return Failure(status, isWrite: true);
            return await CompareAsync(command, buffer, offset, (ulong)bytes, ByteCheck(command.Cdb));
        }
        finally
        {
            _gate.Release(held);
            buffer.Return();
        }
    }

    /// <summary>The first half of the data is compared, the second written if it is equal. Nothing of this unit changes the
    /// range in between, whichever nexus or path it comes by.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> CompareAndWriteAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        int bytes = (int)(range.Blocks << _blockShift);
        if (command.OutLength < 2 * bytes || command.OutOfferedBytes > 2 * bytes) return Sense.InCdb(range.LengthAt);
        if (bytes == 0) return ScsiResult.Good;
        ulong offset = OffsetOf(range);
        IoBuffer buffer = await RentWorkAsync((ulong)bytes);
        VolumeGate.Range held = _gate.Take(offset, (ulong)bytes, true, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (command.IsAborted) return ScsiResult.Good;
            ScsiResult compared = await CompareAsync(command, buffer, offset, (ulong)bytes, 1);
            if (!compared.IsGood || command.IsAborted) return compared;
            ReadOnlyMemory<byte> data = command.DataOut.Slice(bytes, bytes);
            return Failure(await _device.WriteAsync(offset, data, WriteFlagsOf(command.Cdb)), isWrite: true);
        }
        finally
        {
            _gate.Release(held);
            buffer.Return();
        }
    }

    /// <summary>Sets bits: stored OR data.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> OrWriteAsync(ScsiCommand command)
    {
        BlockRange range = BlockRange.Of(command.Cdb);
        if (Fault(command.Cdb, range) is { } fault) return fault;
        if (PayloadFault(command, range, out int bytes) is { } wrong) return wrong;
        if (bytes == 0) return ScsiResult.Good;
        ulong offset = OffsetOf(range);
        IoBuffer buffer = await RentWorkAsync((ulong)bytes);
        VolumeGate.Range held = _gate.Take(offset, (ulong)bytes, true, out ValueTask<bool> wait);
        await wait;
        try
        {
            for (int done = 0; done < bytes && !command.IsAborted; done += WorkBytes)
            {
                Memory<byte> merged = buffer.Slice(0, Math.Min(bytes - done, WorkBytes));
                ReadResult read = await _device.ReadAsync(offset + (ulong)done, merged);
                if (read.Status != IoStatus.Ok) return Failure(read.Status, isWrite: false);
                if (command.IsAborted) return ScsiResult.Good;
                Or(merged.Span, command.DataOut.Span.Slice(done, merged.Length));
                IoStatus status = await _device.WriteAsync(offset + (ulong)done, merged, WriteFlagsOf(command.Cdb));
                if (status != IoStatus.Ok) return Failure(status, isWrite: true);
            }

            return ScsiResult.Good;
        }
        finally
        {
            _gate.Release(held);
            buffer.Return();
        }
    }

    private static void Or(Span<byte> stored, ReadOnlySpan<byte> given)
    {
        Span<ulong> target = MemoryMarshal.Cast<byte, ulong>(stored);
        ReadOnlySpan<ulong> source = MemoryMarshal.Cast<byte, ulong>(given);
        for (int i = 0; i < target.Length; i++) target[i] |= source[i];
    }
}
