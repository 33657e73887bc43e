using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

// The checkpoint of a recovery: nobody is served yet and nothing changes meanwhile, so it takes all pages at once, in the
// order of their addresses, keeps many requests under way, and makes each image when its turn to be written comes. Random
// writes touch every extent, so there may be as many pages as extents.
public sealed partial class Store
{
    // Homes that are being written at a time.
    private const int RecoveryHomesAtOnce = 128;

    // Homes that lie near each other are read back by one read of at most this many pages, which may read others in between.
    private const int BackPages = 64, BackGap = 4, BacksAtOnce = 16;

    /// <summary>A page on its way home, and the checksum that its image begins with.</summary>
    private readonly record struct HomeImage(uint Slot, int Home, uint Crc);

    /// <summary>All dirty pages go home: flush, homes, flush, read back. With <paramref name="spills"/> (in the middle of a
    /// replay, for room in RAM) only extents do, and nothing is free afterwards. Answers what went wrong, or null.</summary>
    private async ValueTask<string?> RecoveryCycleAsync(bool spills = false)
    {
        var numbers = new List<uint>(_dirty.Count);
        for (int left = _dirty.Count; left > 0; left--)
        {
            uint number = _dirty.Dequeue();
            if (spills && _slots[number].Kind != MetadataKind.Extent) _dirty.Enqueue(number);
            else numbers.Add(number);
        }

        numbers.Sort();
        if (await FlushFilesAsync() != IoStatus.Ok) return "checkpoint: flush failed";
        string? fault = numbers.Count > 0 ? await RaiseHighWaterAsync(numbers[^1] + 1) : null;
        if (fault is not null) return fault;
        var images = new HomeImage[numbers.Count];
        if (!await WriteRecoveredAsync(numbers, images)) return "checkpoint: writing a metadata page failed";
        if (images.Length > 0 && await FlushFilesAsync() != IoStatus.Ok) return "checkpoint: flush failed";
        fault = await ReadRecoveredAsync(images);
        if (fault is not null) return fault;
        foreach (uint number in numbers)
        {
            if (_slots[number].Kind == MetadataKind.Free && !spills) _slots.Release(number);
            _slots.Unpin(number);
        }

        MoveTail();
        return null;
    }

    /// <summary>Writes each page to the home that is not its newest one, and says which.</summary>
    private async ValueTask<bool> WriteRecoveredAsync(List<uint> numbers, HomeImage[] images)
    {
        int window = Math.Min(RecoveryHomesAtOnce, numbers.Count);
        var under = new ValueTask<IoStatus>[window];
        var pages = new byte[window][];
        bool isGood = true;
        for (int i = 0; i < numbers.Count + window; i++)
        {
            int at = window == 0 ? 0 : i % window;
            if (i >= window) isGood &= await under[at] == IoStatus.Ok;
            if (i >= numbers.Count) continue;
            (pages[at], int home) = TakeImage(numbers[i], pages[at]);
            images[i] = new HomeImage(numbers[i], home, BinaryPrimitives.ReadUInt32LittleEndian(pages[at]));
#pragma warning disable CA2012 // Several at once; each is awaited exactly once above.
            under[at] = _file.WriteAsync(_geometry.HomeOffset(numbers[i], home), pages[at]);
#pragma warning restore CA2012
        }

        return isGood;
    }

    /// <summary>Before the log gives up what the homes hold, they are seen to hold it.</summary>
    private async ValueTask<string?> ReadRecoveredAsync(HomeImage[] images)
    {
        var under = new ValueTask<string?>[BacksAtOnce];
        string? fault = null;
        int begun = 0, done = 0;
        for (int first = 0; first < images.Length;)
        {
            int count = 1;
            while (first + count < images.Length && PageOf(images[first + count]) - PageOf(images[first]) < BackPages
                && PageOf(images[first + count]) - PageOf(images[first + count - 1]) <= BackGap) count++;
            if (begun - done == BacksAtOnce) fault = await under[done++ % BacksAtOnce] ?? fault;
#pragma warning disable CA2012 // Several at once; each is awaited exactly once, above or below.
            under[begun++ % BacksAtOnce] = ReadBackAsync(images.AsMemory(first, count));
#pragma warning restore CA2012
            first += count;
        }

        while (done < begun) fault = await under[done++ % BacksAtOnce] ?? fault;
        return fault;
    }

    private static ulong PageOf(in HomeImage image) => 2UL * image.Slot + (uint)image.Home;

    private async ValueTask<string?> ReadBackAsync(ReadOnlyMemory<HomeImage> images)
    {
        ulong first = PageOf(images.Span[0]);
        int bytes = (int)(PageOf(images.Span[^1]) - first + 1) * Units.BlockBytes;
        IoBuffer back = await _pool.RentAsync(bytes);
        // What lies in between may be unreadable: then each by itself.
        bool isWhole = await _file.ReadAsync(_geometry.SlotsOffset + first * Units.BlockBytes, back.Slice(0, bytes)) == IoStatus.Ok;
        string? fault = null;
        for (int i = 0; i < images.Length; i++)
        {
            HomeImage image = images.Span[i];
            ulong address = _geometry.HomeOffset(image.Slot, image.Home);
            Memory<byte> page = back.Slice(isWhole ? (int)(PageOf(image) - first) * Units.BlockBytes : 0, Units.BlockBytes);
            if ((!isWhole && await _file.ReadAsync(address, page) != IoStatus.Ok)
                || BinaryPrimitives.ReadUInt32LittleEndian(page.Span) != image.Crc || !Seal.IsGood(page.Span, address, _fold))
                fault = $"checkpoint: the metadata page of slot {image.Slot} does not read back";
        }

        back.Return();
        return fault;
    }
}
