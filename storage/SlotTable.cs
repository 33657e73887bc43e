using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>What the store knows of one metadata slot.</summary>
internal struct Slot
{
    public MetadataKind Kind;
    public bool IsDirty;
    public byte NextHome;

    /// <summary>Its page was looked at since the clock's hand passed.</summary>
    public bool IsReferenced;

    /// <summary>Entries of an extent that are no holes.</summary>
    public ushort Mapped;

    /// <summary>Neighbours of an extent that both hold data and do not lie together on the store.</summary>
    public byte Cuts;

    /// <summary>So many cuts that it is to be laid out anew.</summary>
    public bool IsScattered;
    public uint VolumeId;
    public uint Extent;

    /// <summary>Where its entries are in RAM, counted from 1; 0 when they are only at home.</summary>
    public uint Frame;

    /// <summary>Reasons to keep the entries in RAM: records in flight, dirt, an image on its way home.</summary>
    public int Pins;
    public ulong PageLsn;

    /// <summary>LSN of the last record in the log that names it, applied or not; 0 when it began anew since.</summary>
    public ulong LastLsn;
    public ulong RecLsn;
    public ulong MaxVersion;
}

/// <summary>Where the page of an extent stands among the layers. Slots are counted from 1, 0 is none.</summary>
internal struct SlotLink
{
    /// <summary>Number of its layer in its volume.</summary>
    public uint Layer;

    /// <summary>The page of this extent that the layers below show.</summary>
    public uint Older;

    /// <summary>The next page of its layer.</summary>
    public uint Next;

    /// <summary>The one before.</summary>
    public uint Previous;
}

/// <summary>
/// The metadata slots, and the entries of as many extents as the budget allows. A frame holds the entries of one extent;
/// one that nobody pins may be given to another extent, the one that was not looked at for longest first (second chance:
/// a clock's hand walks over the frames). The caller brings entries that are not here back from their home. Lives on one
/// loop.
/// </summary>
internal sealed class SlotTable
{
    /// <summary>Fewest frames: two for the request that may hold one while it waits for another, and room for others.</summary>
    public const int FramesMin = 4;

    private const int Chunk = 64;
    private readonly uint _slotCount;
    private readonly Slot[][] _slots;
    private readonly SlotLink[]?[] _links; // only where there are layers
    private readonly byte[]?[] _frames;
    private readonly uint[]?[] _owners; // slot + 1 of a frame, 0: free
    private readonly Stack<uint> _freeFrames = new();
    private readonly Stack<uint> _free = new();
    private uint _framesMade;
    private uint _framesPinned;
    private uint _hand;
    private uint _slotChunks;
    private uint _linkChunks;

    /// <summary>A table of <paramref name="slotCount"/> slots that keeps entries of at most
    /// <paramref name="budgetBytes"/> (or <see cref="FramesMin"/> extents) in RAM.</summary>
    public SlotTable(uint slotCount, ulong budgetBytes)
    {
        _slotCount = slotCount;
        int chunks = (int)((slotCount + Chunk - 1) / Chunk);
        _slots = new Slot[chunks][];
        _links = new SlotLink[]?[chunks];
        FramesMax = (uint)Math.Clamp(budgetBytes / MetadataPage.EntriesBytes, FramesMin, Math.Max(FramesMin, slotCount));
        _frames = new byte[]?[(FramesMax + Chunk - 1) / Chunk];
        _owners = new uint[]?[_frames.Length];
    }

    /// <summary>A frame may have become free, or may be taken from its extent now. Called inside of changes: to be answered
    /// at the end of the turn.</summary>
    public Action? Relieved { get; set; }

    /// <summary>Most extents whose entries are in RAM at once.</summary>
    public uint FramesMax { get; }

    /// <summary>Slots from here on were never used.</summary>
    public uint Next { get; private set; }

    public uint Used { get; private set; }

    /// <summary>Of the used ones, those that hold nothing any more: a checkpoint brings their tombstones home and gives them
    /// back.</summary>
    public uint Returning { get; private set; }

    /// <summary>Slots that were given back so far.</summary>
    public ulong Released { get; private set; }

    public uint FreeCount => (uint)_free.Count + _slotCount - Next;

    /// <summary>Bytes of RAM that entries take.</summary>
    public ulong ResidentBytes { get; private set; }

    /// <summary>Bytes of RAM that the table itself takes, whatever the budget.</summary>
    public ulong TableBytes =>
        (ulong)_slots.Length * 16 + _slotChunks * Chunk * (ulong)System.Runtime.CompilerServices.Unsafe.SizeOf<Slot>()
        + _linkChunks * Chunk * (ulong)System.Runtime.CompilerServices.Unsafe.SizeOf<SlotLink>();

    /// <summary>Times that a frame was taken from an extent for another one.</summary>
    public ulong Evictions { get; private set; }

    /// <summary>Frames that can be had at this moment.</summary>
    public uint FramesFree => FramesMax - _framesPinned;

    public ref Slot this[uint slot]
    {
        get
        {
            Slot[]? chunk = _slots[slot / Chunk];
            if (chunk is null)
            {
                chunk = _slots[slot / Chunk] = new Slot[Chunk];
                _slotChunks++;
            }

            return ref chunk[slot % Chunk];
        }
    }

    /// <summary>Where the slot's page stands; all zeros where there are no layers.</summary>
    public SlotLink Link(uint slot) => _links[slot / Chunk] is { } chunk ? chunk[slot % Chunk] : default;

    /// <summary>The same, to be changed.</summary>
    public ref SlotLink LinkOf(uint slot)
    {
        ref SlotLink[]? chunk = ref _links[slot / Chunk];
        if (chunk is null)
        {
            chunk = new SlotLink[Chunk];
            _linkChunks++;
        }

        return ref chunk[slot % Chunk];
    }

    /// <summary>The slot's page is in no layer but a volume's first.</summary>
    public void ClearLink(uint slot)
    {
        if (_links[slot / Chunk] is { } chunk) chunk[slot % Chunk] = default;
    }

    /// <summary>The entries are in RAM.</summary>
    public bool IsResident(uint slot) => this[slot].Frame != 0;

    /// <summary>The entries of an extent, which must be in RAM; valid until the caller waits for something.</summary>
    public Span<byte> Entries(uint slot)
    {
        ref Slot s = ref this[slot];
        Check.That(s.Frame != 0);
        s.IsReferenced = true;
        uint frame = s.Frame - 1;
        return _frames[frame / Chunk].AsSpan((int)(frame % Chunk) * MetadataPage.EntriesBytes, MetadataPage.EntriesBytes);
    }

    /// <summary>Keeps the entries (if they are in RAM, or as soon as they are) until <see cref="Unpin"/>.</summary>
    public void Pin(uint slot)
    {
        ref Slot s = ref this[slot];
        if (s.Pins++ == 0 && s.Frame != 0) _framesPinned++;
    }

    /// <summary>Undoes one <see cref="Pin"/>.</summary>
    public void Unpin(uint slot)
    {
        ref Slot s = ref this[slot];
        Check.That(s.Pins > 0);
        if (--s.Pins > 0 || s.Frame == 0) return;
        _framesPinned--;
        Relieved?.Invoke();
    }

    /// <summary>Makes sure that <paramref name="count"/> frames are free, taking them from extents that nobody pins.</summary>
    public bool TrySpare(int count)
    {
        while (_freeFrames.Count < count)
        {
            if (_framesMade < FramesMax) _freeFrames.Push(MakeFrame());
            else if (FramesFree > (uint)_freeFrames.Count) _freeFrames.Push(Evict());
            else return false;
        }

        return true;
    }

    /// <summary>Gives an extent a frame, with content as it may be; false when there is none to be had.</summary>
    /// <param name="slot">The extent's slot.</param>
    /// <param name="takes">Take the frame of another extent if need be.</param>
    public bool TryAttach(uint slot, bool takes = true)
    {
        Check.That(!IsResident(slot));
        if (!takes && _freeFrames.Count == 0 && _framesMade == FramesMax) return false;
        if (!TrySpare(1)) return false;
        uint frame = _freeFrames.Pop();
        ref Slot s = ref this[slot];
        s.Frame = frame + 1;
        _owners[frame / Chunk]![frame % Chunk] = slot + 1;
        if (s.Pins > 0) _framesPinned++;
        return true;
    }

    /// <summary>Forgets the entries of a slot that holds no extent any more.</summary>
    public void Detach(uint slot)
    {
        ref Slot s = ref this[slot];
        if (s.Frame == 0) return;
        if (s.Pins > 0) _framesPinned--;
        Release(ref s);
        Relieved?.Invoke();
    }

    /// <summary>Takes a slot; an extent's page begins empty. The caller made sure of a frame.</summary>
    public bool TryTake(MetadataKind kind, uint volumeId, uint extent, out uint slot)
    {
        if (!_free.TryPop(out slot))
        {
            if (Next == _slotCount) return false;
            slot = Next++;
        }

        Used++;
        ref Slot s = ref this[slot];
        s.Kind = kind;
        s.VolumeId = volumeId;
        s.Extent = extent;
        s.MaxVersion = 0;
        s.LastLsn = 0;
        s.Mapped = 0;
        ClearLink(slot);
        s.Cuts = 0;
        if (kind != MetadataKind.Extent) return true;
        Check.That(TryAttach(slot));
        Entries(slot).Clear();
        return true;
    }

    /// <summary>What the slot held is gone. Its tombstone must go home before it may begin anew. For a table that is
    /// <see cref="Rebuild">built</see>.</summary>
    public void Drop(uint slot)
    {
        ref Slot s = ref this[slot];
        Check.That(s.Kind > MetadataKind.Free);
        s.Kind = MetadataKind.Free;
        Returning++;
    }

    /// <summary>The tombstone is durable: the slot may begin anew.</summary>
    public void Release(uint slot)
    {
        Check.That(Returning > 0);
        Returning--;
        Released++;
        Used--;
        _free.Push(slot);
    }

    /// <summary>After recovery: everything below <paramref name="end"/> that holds nothing is free. Dirty slots that hold
    /// nothing await their tombstone, and the checkpoint releases them.</summary>
    public void Rebuild(uint end)
    {
        Next = Math.Max(Next, end);
        for (uint slot = Next; slot-- > 0;)
        {
            ref Slot s = ref this[slot];
            bool isHeld = s.Kind > MetadataKind.Free;
            if (isHeld || s.IsDirty) Used++;
            else _free.Push(slot);
            if (!isHeld && s.IsDirty) Returning++;
        }
    }

    public void Reach(uint slot) => Next = Math.Max(Next, slot + 1);

    private uint MakeFrame()
    {
        uint frame = _framesMade++;
        if (frame % Chunk != 0) return frame;
        int count = (int)Math.Min(Chunk, FramesMax - frame);
        _frames[frame / Chunk] = new byte[count * MetadataPage.EntriesBytes];
        _owners[frame / Chunk] = new uint[count];
        ResidentBytes += (ulong)count * MetadataPage.EntriesBytes;
        return frame;
    }

    /// <summary>The hand goes on to a frame that nobody pins and that was not looked at since it passed last; there is one
    /// that nobody pins.</summary>
    private uint Evict()
    {
        while (true)
        {
            uint frame = _hand;
            _hand = (_hand + 1) % _framesMade;
            uint owner = _owners[frame / Chunk]![frame % Chunk];
            if (owner == 0) continue;
            ref Slot s = ref this[owner - 1];
            if (s.Pins > 0) continue;
            if (!s.IsReferenced)
            {
                s.Frame = 0;
                _owners[frame / Chunk]![frame % Chunk] = 0;
                Evictions++;
                return frame;
            }

            s.IsReferenced = false;
        }
    }

    private void Release(ref Slot s)
    {
        uint frame = s.Frame - 1;
        s.Frame = 0;
        _owners[frame / Chunk]![frame % Chunk] = 0;
        _freeFrames.Push(frame);
    }
}
