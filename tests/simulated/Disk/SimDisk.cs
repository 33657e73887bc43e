using BlockServer.Core;

namespace BlockServer.Tests.Simulated.Disk;

/// <summary>
/// A disk as bad as disks are: a volatile cache that reorders, writes torn at 512 B, answers in any order after drawn
/// delays, and the faults of <see cref="SimDiskFaults"/>. It outlives the loops of the processes that use it:
/// <see cref="Attach"/> gives it to the next one after <see cref="Kill"/> or <see cref="CutPower"/>.
/// Also watches its user: memory lent to a write must not change, requests must be aligned and inside.
/// </summary>
public sealed class SimDisk : IFile
{
    private readonly SeededRandom _random;
    private readonly ulong _seed;
    private readonly DiskImage _durable;
    private readonly Dictionary<ulong, byte[]> _visible = []; // pages of which the cache holds something newer than the medium
    private readonly List<PendingWrite> _pending = []; // answered ones in the order of their answers, then those in flight
    private readonly SortedSet<ulong> _unreadable = [];
    private readonly HashSet<int> _flushing = []; // views of which a flush is under way
    private SimLoop _loop;
    private ulong _life;
    private ulong _ordinals;
    private ulong _settlements; // counts changes of the medium itself
    private ulong[] _events = new ulong[Enum.GetValues<DiskEvent>().Length];

    /// <summary>A disk full of zeros.</summary>
    public SimDisk(SimLoop loop, ulong sizeBytes, ulong seed)
        : this(loop, sizeBytes, seed, new DiskImage())
    {
    }

    private SimDisk(SimLoop loop, ulong sizeBytes, ulong seed, DiskImage image)
    {
        Check.That(sizeBytes % Units.BlockBytes == 0);
        _loop = loop;
        _random = new SeededRandom(seed);
        _seed = seed;
        _durable = image;
        SizeBytes = sizeBytes;
    }

    /// <inheritdoc/>
    public ulong SizeBytes { get; }

    /// <summary>How it misbehaves from now on.</summary>
    public SimDiskFaults Faults { get; set; } = SimDiskFaults.None;

    /// <summary>Faults injected so far that give a reason for an error (slow answers, power cuts and kills not counted).</summary>
    public ulong FaultCount { get; private set; }

    /// <summary>Faults that destroyed content (rot, unreadable page, lost or misdirected write).</summary>
    public ulong DestructiveFaultCount { get; private set; }

    /// <summary>A flush failed since the last <see cref="Attach"/>: unflushed writes may be gone without a power cut.</summary>
    public bool HasFailedFlush { get; private set; }

    /// <summary>A request of this life will never be answered.</summary>
    public bool HasHung { get; private set; }

    /// <summary>Writes and flushes answered so far; changes whenever a crash would leave something new.</summary>
    public ulong ChangeCount { get; private set; }

    /// <summary>Flushes done so far.</summary>
    public ulong FlushCount { get; private set; }

    /// <summary>What the user of the disk did wrong.</summary>
    public List<string> Misuse { get; } = [];

    /// <summary>Writes that a power cut may lose, answered ones first.</summary>
    public IReadOnlyList<PendingWrite> Pending => _pending;

    /// <summary>The next process takes the disk; answers to earlier ones are never delivered.</summary>
    public void Attach(SimLoop loop)
    {
        Check.That(_pending.TrueForAll(write => write.IsAnswered));
        _loop = loop;
        _flushing.Clear();
        HasFailedFlush = false;
        HasHung = false;
    }

    /// <summary>How often something happened.</summary>
    public ulong CountOf(DiskEvent what) => _events[(int)what];

    /// <summary>A second view of the same medium, as another open of the file: it sees the same content, but its flush
    /// covers only writes that came through it.</summary>
    public IFile OpenView() => new View(this);

    /// <summary>The process dies: answered writes stay in the cache, of those in flight any part arrives.</summary>
    public void Kill()
    {
        _life++;
        foreach (PendingWrite write in _pending)
        {
            if (write.IsAnswered) continue;
            write.Masks = DrawMasks(_random, write.Pages.Count);
            Count(write.Masks, false);
            Show(write);
        }

        ChangeCount++;
    }

    /// <summary>The power fails: of everything not flushed any part stays, each page old, new or torn.</summary>
    public void CutPower()
    {
        _life++;
        Settle(_durable, _random);
        ChangeCount++;
    }

    /// <summary>A disk with the same content and no cache, as this one would come back from a power cut right now.
    /// <paramref name="maskOf"/> says for (pending write, page of it) which 512 B sectors stay. Use it only until this
    /// disk changes.</summary>
    public SimDisk ForkAfterPowerCut(SimLoop loop, ulong seed, Func<int, int, byte> maskOf)
    {
        var image = new DiskImage(_durable);
        bool isAnyDropped = false;
        for (int i = 0; i < _pending.Count; i++)
        {
            PendingWrite write = _pending[i];
            var masks = new byte[write.Pages.Count];
            for (int page = 0; page < masks.Length; page++)
            {
                masks[page] = (byte)(maskOf(i, page) & write.MaskOf(page));
                image.Merge(write.FirstPage + (ulong)page, write.Pages[page], masks[page]);
            }

            isAnyDropped |= Count(masks, isAnyDropped);
        }

        return new SimDisk(loop, SizeBytes, seed, image) { _events = _events };
    }

    /// <summary>Names the content that <see cref="ForkAfterPowerCut"/> would give with these masks: equal names are equal
    /// disks.</summary>
    public ulong NameOfFork(Func<int, int, byte> maskOf)
    {
        ulong name = (14695981039346656037 ^ _settlements) * 1099511628211;
        for (int i = 0; i < _pending.Count; i++)
        {
            PendingWrite write = _pending[i];
            for (int page = 0; page < write.Pages.Count; page++)
            {
                byte mask = (byte)(maskOf(i, page) & write.MaskOf(page));
                if (mask == 0) continue;
                name = (name ^ write.Ordinal) * 1099511628211;
                name = (name ^ (write.FirstPage + (ulong)page)) * 1099511628211; // where it went: a misdirected one moves
                name = (name ^ mask) * 1099511628211;
            }
        }

        return name;
    }

    /// <summary>Masks of a write that was cut: nothing, everything, or any part of each page.</summary>
    public static byte[] DrawMasks(IRandom random, int pages)
    {
        var masks = new byte[pages];
        int fate = random.NextBelow(4);
        if (fate == 0) return masks;
        for (int i = 0; i < pages; i++)
        {
            masks[i] = fate == 1 ? byte.MaxValue : random.NextBelow(3) switch
            {
                0 => (byte)0,
                1 => byte.MaxValue,
                _ => (byte)random.NextUInt64(),
            };
        }

        return masks;
    }

    /// <summary>Damages a page of the medium for a test; answers false when it was never written.</summary>
    public bool Rot(ulong page, int bit)
    {
        byte[]? content = _durable.Find(page);
        if (content is null) return false;
        byte[] rotten = [.. content];
        rotten[bit / 8] ^= (byte)(1 << (bit % 8));
        _durable.Set(page, rotten);
        _settlements++;
        if (_visible.TryGetValue(page, out byte[]? cached) && ReferenceEquals(cached, content)) _visible.Remove(page);
        return true;
    }

    /// <summary>What a read of the page would give now; a copy.</summary>
    public byte[] PageNow(ulong page) => [.. Visible(page) ?? new byte[Units.BlockBytes]];

    /// <inheritdoc/>
    public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        if (!IsSound("read", offsetBytes, target.Length)) return new(IoStatus.IoError);
        target.Span.Fill(0xA5); // whoever looks before the answer sees that it is too early
        ulong firstPage = offsetBytes / Units.BlockBytes;
        int pages = target.Length / Units.BlockBytes;
        return Later(() =>
        {
            if (Draw(Faults.ReadError, DiskEvent.ReadError)) return IoStatus.IoError;
            DrawReadFaults(firstPage, pages);
            for (int i = 0; i < pages; i++)
            {
                Span<byte> block = target.Span.Slice(i * Units.BlockBytes, Units.BlockBytes);
                if (_unreadable.Contains(firstPage + (ulong)i)) return IoStatus.IoError;
                byte[]? content = Visible(firstPage + (ulong)i);
                if (content is null) block.Clear();
                else content.CopyTo(block);
            }

            MixInFlight(firstPage, target.Span);
            return IoStatus.Ok;
        });
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) => WriteAsync(0, offsetBytes, source);

    private ValueTask<IoStatus> WriteAsync(int view, ulong offsetBytes, ReadOnlyMemory<byte> source)
    {
        if (!IsSound("write", offsetBytes, source.Length)) return new(IoStatus.IoError);
        var pages = new byte[source.Length / Units.BlockBytes][];
        for (int i = 0; i < pages.Length; i++)
            pages[i] = source.Slice(i * Units.BlockBytes, Units.BlockBytes).ToArray();
        var write = new PendingWrite(view, ++_ordinals, offsetBytes / Units.BlockBytes, pages);
        _pending.Add(write);
        return Later(() =>
        {
            for (int i = 0; i < pages.Length; i++)
            {
                if (source.Span.Slice(i * Units.BlockBytes, Units.BlockBytes).SequenceEqual(pages[i])) continue;
                Misuse.Add($"memory of a write to page {write.FirstPage + (ulong)i} changed before its answer");
                break;
            }

            ChangeCount++;
            return Finish(write);
        });
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => FlushAsync(0);

    private ValueTask<IoStatus> FlushAsync(int view)
    {
        if (HasFailedFlush) Misuse.Add("a flush after one had failed");
        // An error is told once, to one of them: the other answers Ok over what is gone.
        if (!_flushing.Add(view)) Misuse.Add("a flush while another is under way");
        var covered = new HashSet<PendingWrite>(
            _pending.Where(write => write.IsAnswered && write.View == view), ReferenceEqualityComparer.Instance);
        return Later(() =>
        {
            _flushing.Remove(view);
            ChangeCount++;
            if (Draw(Faults.FlushError, DiskEvent.FlushError))
            {
                HasFailedFlush = true;
                SettleAnswered();
                return IoStatus.IoError;
            }

            // Only what is still pending: another flush may have done a part, and newer writes lie over it by now.
            foreach (PendingWrite write in _pending)
            {
                if (covered.Contains(write)) MakeDurable(write);
            }

            if (_pending.RemoveAll(covered.Contains) > 0)
            {
                _settlements++;
                RebuildVisible();
            }

            FlushCount++;
            return IoStatus.Ok;
        });
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.NotSupported);

    private bool IsSound(string what, ulong offsetBytes, int length)
    {
        if (offsetBytes % Units.BlockBytes == 0 && length % Units.BlockBytes == 0 && length > 0
            && offsetBytes <= SizeBytes && (ulong)length <= SizeBytes - offsetBytes) return true;
        Misuse.Add($"{what} of {length} bytes at {offsetBytes} is misaligned or outside of {SizeBytes}");
        return false;
    }

    private IoStatus Finish(PendingWrite write)
    {
        write.IsAnswered = true;
        _pending.Remove(write);
        if (Draw(Faults.LostWrite, DiskEvent.LostWrite))
        {
            DestructiveFaultCount++;
            return IoStatus.Ok;
        }

        if (Draw(Faults.MisdirectedWrite, DiskEvent.MisdirectedWrite))
        {
            DestructiveFaultCount++;
            ulong room = SizeBytes / Units.BlockBytes - (ulong)write.Pages.Count;
            write.FirstPage = _random.NextChance(0.5)
                ? Math.Min(room, write.FirstPage + 1 + _random.NextBelow(16UL))
                : _random.NextBelow(room + 1);
        }

        bool isError = Draw(Faults.WriteError, DiskEvent.WriteError) | MeetsBadPage(write);
        bool isFull = !isError && Draw(Faults.NoSpace, DiskEvent.NoSpace);
        if (isError || isFull) write.Masks = DrawMasks(_random, write.Pages.Count);
        Show(write);
        _pending.Insert(_pending.FindLastIndex(other => other.IsAnswered) + 1, write);
        return isError ? IoStatus.IoError : isFull ? IoStatus.NoSpace : IoStatus.Ok;
    }

    private bool MeetsBadPage(PendingWrite write)
    {
        bool meets = false;
        for (int i = 0; Faults.BadPages > 0 && i < write.Pages.Count; i++)
        {
            ulong page = write.FirstPage + (ulong)i;
            if (page < SimDiskFaults.BadPagesFrom || page >= SizeBytes / Units.BlockBytes - 2) continue;
            // By the page and the seed alone, so that a bad page stays bad.
            meets |= new SeededRandom(_seed ^ (page * 0x9E3779B97F4A7C15)).NextChance(Faults.BadPages);
        }

        if (!meets) return false;
        FaultCount++;
        _events[(int)DiskEvent.BadPage]++;
        return true;
    }

    private void Show(PendingWrite write)
    {
        write.IsAnswered = true;
        for (int i = 0; i < write.Pages.Count; i++)
        {
            if (write.MaskOf(i) != 0) _unreadable.Remove(write.FirstPage + (ulong)i);
        }

        Overlay(write);
    }

    private void Overlay(PendingWrite write)
    {
        for (int i = 0; i < write.Pages.Count; i++)
        {
            ulong page = write.FirstPage + (ulong)i;
            byte mask = write.MaskOf(i);
            if (mask == 0) continue;
            _visible[page] = mask == byte.MaxValue ? write.Pages[i] : DiskImage.Mixed(Visible(page), write.Pages[i], mask);
        }
    }

    private void MakeDurable(PendingWrite write)
    {
        for (int i = 0; i < write.Pages.Count; i++)
            _durable.Merge(write.FirstPage + (ulong)i, write.Pages[i], write.MaskOf(i));
    }

    /// <summary>Everything pending goes to the medium in part, in the order of the answers; the cache is empty then.</summary>
    private void Settle(DiskImage image, IRandom random)
    {
        bool isAnyDropped = false;
        _settlements++;
        foreach (PendingWrite write in _pending)
        {
            byte[] masks = DrawMasks(random, write.Pages.Count);
            isAnyDropped |= Count(masks, isAnyDropped);
            for (int i = 0; i < masks.Length; i++)
                image.Merge(write.FirstPage + (ulong)i, write.Pages[i], (byte)(masks[i] & write.MaskOf(i)));
        }

        _pending.Clear();
        _visible.Clear();
    }

    private void SettleAnswered()
    {
        PendingWrite[] inFlight = [.. _pending.Where(write => !write.IsAnswered)];
        _pending.RemoveAll(write => !write.IsAnswered);
        Settle(_durable, _random);
        _pending.AddRange(inFlight);
    }

    private void RebuildVisible()
    {
        _visible.Clear();
        foreach (PendingWrite write in _pending)
        {
            if (write.IsAnswered) Overlay(write);
        }
    }

    private byte[]? Visible(ulong page) => _visible.TryGetValue(page, out byte[]? content) ? content : _durable.Find(page);

    private void DrawReadFaults(ulong firstPage, int pages)
    {
        ulong page = firstPage + _random.NextBelow((ulong)pages);
        if (Draw(Faults.LatentReadError, DiskEvent.LatentReadError))
        {
            DestructiveFaultCount++;
            _unreadable.Add(page);
        }

        if (Faults.BitRot > 0 && _random.NextChance(Faults.BitRot) && Rot(page, _random.NextBelow(Units.BlockBytes * 8)))
        {
            FaultCount++;
            DestructiveFaultCount++;
            _events[(int)DiskEvent.BitRot]++;
        }
    }

    /// <summary>A read that races with a write sees any sectors of it.</summary>
    private void MixInFlight(ulong firstPage, Span<byte> target)
    {
        ulong endPage = firstPage + (ulong)(target.Length / Units.BlockBytes);
        foreach (PendingWrite write in _pending)
        {
            if (write.IsAnswered || write.FirstPage >= endPage || write.FirstPage + (ulong)write.Pages.Count <= firstPage) continue;
            for (int i = 0; i < write.Pages.Count; i++)
            {
                ulong page = write.FirstPage + (ulong)i;
                if (page < firstPage || page >= endPage) continue;
                Span<byte> block = target.Slice((int)(page - firstPage) * Units.BlockBytes, Units.BlockBytes);
                DiskImage.Mixed(block.ToArray(), write.Pages[i], (byte)_random.NextUInt64()).CopyTo(block);
            }
        }
    }

    private bool Draw(double probability, DiskEvent what)
    {
        if (probability <= 0 || !_random.NextChance(probability)) return false;
        if (what != DiskEvent.Slow) FaultCount++;
        _events[(int)what]++;
        return true;
    }

    /// <summary>Counts what became of a write in a crash; answers whether it was dropped.</summary>
    private bool Count(byte[] masks, bool isAnyDropped)
    {
        bool isDropped = !masks.AsSpan().ContainsAnyExcept((byte)0);
        bool isWhole = !masks.AsSpan().ContainsAnyExcept(byte.MaxValue);
        if (isDropped) _events[(int)DiskEvent.DroppedWrite]++;
        else if (!isWhole) _events[(int)DiskEvent.TornWrite]++;
        if (isWhole && isAnyDropped) _events[(int)DiskEvent.ReorderedWrite]++;
        return isDropped;
    }

    private ValueTask<IoStatus> Later(Func<IoStatus> effect)
    {
        var done = new LoopEvent<IoStatus>();
        ulong life = _life;
        ulong delay = Faults.LatencyNanosMin + _random.NextBelow(Faults.LatencyNanosMax);
        if (Draw(Faults.Slow, DiskEvent.Slow)) delay *= 10 + _random.NextBelow(990UL);
        if (Draw(Faults.Hang, DiskEvent.Hang))
        {
            HasHung = true;
            return done.WaitAsync();
        }

        _loop.Schedule(delay, () =>
        {
            if (life == _life) done.Set(effect());
        });
        return done.WaitAsync();
    }

    private sealed class View(SimDisk disk) : IFile
    {
        public ulong SizeBytes => disk.SizeBytes;

        public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) => disk.ReadAsync(offsetBytes, target);

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) =>
            disk.WriteAsync(1, offsetBytes, source);

        public ValueTask<IoStatus> FlushAsync() => disk.FlushAsync(1);

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) =>
            disk.DiscardAsync(offsetBytes, lengthBytes);
    }
}
