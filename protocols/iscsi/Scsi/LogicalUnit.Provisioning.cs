using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Thin provisioning: UNMAP, WRITE SAME, GET LBA STATUS.</summary>
public sealed partial class LogicalUnit
{
    /// <summary>Most blocks of one LBA status descriptor: whole physical blocks that fit 32 bits.</summary>
    private const uint StatusBlocksMax = 0xFFFFFFF8;

    /// <summary>How far one GET LBA STATUS looks, bytes: a bound of its work.</summary>
    private const ulong MapBytesMax = 8 * Units.TiB;

    private static bool HasNoData(byte[] cdb) => cdb[0] == ScsiOp.WriteSame16 && (cdb[1] & 0x01) != 0;

    /// <summary>List: length u16 of what follows, length u16 of the descriptors, 0 u32; each LBA u64, blocks u32, 0 u32.
    /// All descriptors are checked before the first one is acted on.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> UnmapAsync(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        if ((cdb[1] & 0x01) != 0) return Sense.InCdb(1, 0); // ANCHOR
        int length = (int)TransferPlan.ListOf(cdb)!.Value;
        if (length == 0) return ScsiResult.Good;
        if (UnmapFault(command.DataOut.Span[..length], out int count) is { } fault) return fault;
        for (int i = 0; i < count && !command.IsAborted; i++)
        {
            (ulong lba, uint blocks) = Descriptor(command.DataOut.Span, i);
            if (blocks == 0) continue;
            ScsiResult done = await DeallocateAsync(command, lba << _blockShift, (ulong)blocks << _blockShift);
            if (!done.IsGood) return done;
        }

        return ScsiResult.Good;
    }

    private static (ulong Lba, uint Blocks) Descriptor(ReadOnlySpan<byte> list, int index)
    {
        ReadOnlySpan<byte> one = list.Slice(8 + 16 * index, 16);
        return (BinaryPrimitives.ReadUInt64BigEndian(one), BinaryPrimitives.ReadUInt32BigEndian(one[8..]));
    }

    private Sense? UnmapFault(ReadOnlySpan<byte> list, out int count)
    {
        count = 0;
        if (list.Length < 8) return Sense.ListLength;
        int data = BinaryPrimitives.ReadUInt16BigEndian(list), descriptors = BinaryPrimitives.ReadUInt16BigEndian(list[2..]);
        if (data + 2 > list.Length || descriptors + 8 > list.Length) return Sense.ListLength;
        if (descriptors % 16 != 0 || descriptors + 6 > data) return Sense.InList(2);
        if (descriptors / 16 > UnmapDescriptorsMax) return Sense.InList(2);
        ulong sum = 0;
        for (int i = 0; i < descriptors / 16; i++)
        {
            (ulong lba, uint blocks) = Descriptor(list, i);
            if (lba > CapacityBlocks || blocks > CapacityBlocks - lba) return Sense.OutOfRange;
            sum += blocks;
            if (sum > UnmapBlocksMax) return Sense.InList(8 + 16 * i + 8);
        }

        count = descriptors / 16;
        return null;
    }

    /// <summary>The whole range reads as zeros afterwards (LBPRZ); its whole physical blocks become holes. When the store is
    /// too full to write the zeros of the edges, the edges stay as they are.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> DeallocateAsync(ScsiCommand command, ulong offset, ulong length)
    {
        VolumeGate.Range held = _gate.Take(offset, length, false, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (command.IsAborted) return ScsiResult.Good;
            IoStatus status = await _device.WriteZeroesAsync(offset, length, CacheFlags);
            if (status == IoStatus.NoSpace && command.Cdb[0] == ScsiOp.Unmap)
                status = await _device.TrimAsync(offset, length, CacheFlags);
            return Failure(status, isWrite: true);
        }
        finally
        {
            _gate.Release(held);
        }
    }

    private Sense? WriteSameFault(byte[] cdb, in BlockRange range)
    {
        bool unmaps = (cdb[1] & 0x08) != 0;
        if ((cdb[1] & 0x10) != 0) return Sense.InCdb(1, 4); // ANCHOR
        if (unmaps && !_options.IsThin) return Sense.InCdb(1, 3);
        return range.Blocks == 0 || range.Blocks > WriteSameBlocksMax ? Sense.InCdb(range.LengthAt) : null; // WSNZ
    }

    /// <summary>One block again and again; zero blocks are refused (WSNZ). With UNMAP a block of zeros leaves holes, any other
    /// is written. NDOB, or UNMAP without data: zeros.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> WriteSameAsync(ScsiCommand command)
    {
        byte[] cdb = command.Cdb;
        BlockRange range = BlockRange.Of(cdb);
        if (Fault(cdb, range) is { } fault) return fault;
        bool unmaps = (cdb[1] & 0x08) != 0;
        bool isZero = HasNoData(cdb) || (unmaps && command.OutLength == 0 && command.OutOfferedBytes <= 0);
        if (!isZero)
        {
            if (command.OutLength < _blockBytes || command.OutOfferedBytes > _blockBytes) return Sense.PartialBlock;
            isZero = !command.DataOut.Span[.._blockBytes].ContainsAnyExcept((byte)0);
        }

        ulong offset = OffsetOf(range);
        ulong length = (ulong)range.Blocks << _blockShift;
        if (isZero && unmaps) return await DeallocateAsync(command, offset, length);
        return await FillAsync(command, offset, length, isZero);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> FillAsync(ScsiCommand command, ulong offset, ulong length, bool isZero)
    {
        IoBuffer? buffer = isZero ? null : await RentWorkAsync(length);
        VolumeGate.Range held = _gate.Take(offset, length, false, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (command.IsAborted) return ScsiResult.Good;
            if (buffer is null)
            {
                WriteFlags flags = _options.IsThin ? CacheFlags : CacheFlags | WriteFlags.NoHole;
                return Failure(await _device.WriteZeroesAsync(offset, length, flags), isWrite: true);
            }

            int chunk = (int)Math.Min(length, WorkBytes);
            Repeat(command.DataOut.Span[.._blockBytes], buffer.Data.Span[..chunk]);
            for (ulong done = 0; done < length && !command.IsAborted; done += (ulong)chunk)
            {
                int count = (int)Math.Min(length - done, (ulong)chunk);
                IoStatus status = await _device.WriteAsync(offset + done, buffer.Slice(0, count), CacheFlags);
                if (status != IoStatus.Ok) return Failure(status, isWrite: true);
            }

            return ScsiResult.Good;
        }
        finally
        {
            _gate.Release(held);
            buffer?.Return();
        }
    }

    private static void Repeat(ReadOnlySpan<byte> block, Span<byte> target)
    {
        for (int at = 0; at < target.Length; at += block.Length) block.CopyTo(target[at..]);
    }

    /// <summary>Length u32 of what follows the field, 0 u32, then LBA u64, blocks u32, 0 mapped or 1 deallocated, 0, 0, 0. A
    /// start inside of a physical block is moved up to the next one, which is where a run can begin.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> GetLbaStatusAsync(ScsiCommand command)
    {
        const int descriptorsMax = 256;
        byte[] cdb = command.Cdb;
        int allocation = TransferPlan.AllocationOf(cdb);
        ulong lba = BinaryPrimitives.ReadUInt64BigEndian(cdb.AsSpan(2));
        if (lba >= CapacityBlocks) return Sense.OutOfRange;
        if (allocation < 24) return Sense.InCdb(10);
        ulong physical = (ulong)(Units.BlockBytes >> _blockShift), aligned = (lba + physical - 1) & ~(physical - 1);
        if (aligned < CapacityBlocks) lba = aligned;
        int most = Math.Min((allocation - 8) / 16, descriptorsMax);
        var runs = new List<MapRun>(most);
        ulong length = Math.Min((CapacityBlocks - lba) << _blockShift, MapBytesMax);
        IoStatus status = await _device.MapAsync(lba << _blockShift, length, most, runs);
        if (status != IoStatus.Ok) return Failure(status, isWrite: false);
        Span<byte> data = _scratch;
        data[..8].Clear();
        int at = 8;
        foreach (MapRun run in runs)
        {
            // A run that is too long for one descriptor takes several.
            for (ulong left = run.LengthBytes >> _blockShift; left > 0 && at < 8 + 16 * most;)
            {
                uint blocks = (uint)Math.Min(left, StatusBlocksMax);
                Span<byte> one = data.Slice(at, 16);
                one.Clear();
                BinaryPrimitives.WriteUInt64BigEndian(one, lba);
                BinaryPrimitives.WriteUInt32BigEndian(one[8..], blocks);
                one[12] = run.IsHole ? (byte)1 : (byte)0;
                lba += blocks;
                left -= blocks;
                at += 16;
            }
        }

        BinaryPrimitives.WriteUInt32BigEndian(data, (uint)(at - 4));
        return await DataIn.Reply(_loop, command, _scratch, at, allocation);
    }
}
