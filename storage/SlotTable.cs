namespace BlockServer.Storage;

/// <summary>What the store knows of one metadata slot.</summary>
internal struct Slot
{
    public MetadataKind Kind;
    public bool IsDirty;
    public byte NextHome;
    public uint VolumeId;
    public uint Extent;
    public ulong PageLsn;
    public ulong RecLsn;
    public ulong MaxVersion;
}

/// <summary>The metadata slots in RAM, and the entries of extents in slabs of 64 pages. Lives on one loop.</summary>
internal sealed class SlotTable(uint slotCount)
{
    private const int SlabPages = 64;
    private readonly Slot[][] _slots = new Slot[(slotCount + SlabPages - 1) / SlabPages][];
    private readonly byte[]?[] _slabs = new byte[]?[(slotCount + SlabPages - 1) / SlabPages];
    private readonly Stack<uint> _free = new();

    /// <summary>Slots from here on were never used.</summary>
    public uint Next { get; private set; }

    public uint Used { get; private set; }

    public uint FreeCount => (uint)_free.Count + slotCount - Next;

    public ulong ResidentBytes { get; private set; }

    public ref Slot this[uint slot]
    {
        get
        {
            Slot[] chunk = _slots[slot / SlabPages] ??= new Slot[SlabPages];
            return ref chunk[slot % SlabPages];
        }
    }

    public Span<byte> Entries(uint slot)
    {
        byte[]? slab = _slabs[slot / SlabPages];
        if (slab is null)
        {
            slab = _slabs[slot / SlabPages] = new byte[SlabPages * MetadataPage.EntriesBytes];
            ResidentBytes += (ulong)slab.Length;
        }

        return slab.AsSpan((int)(slot % SlabPages) * MetadataPage.EntriesBytes, MetadataPage.EntriesBytes);
    }

    public bool TryTake(MetadataKind kind, uint volumeId, uint extent, out uint slot)
    {
        if (!_free.TryPop(out slot))
        {
            if (Next == slotCount) return false;
            slot = Next++;
        }

        Used++;
        ref Slot s = ref this[slot];
        s.Kind = kind;
        s.VolumeId = volumeId;
        s.Extent = extent;
        s.MaxVersion = 0;
        if (kind == MetadataKind.Extent) Entries(slot).Clear();
        return true;
    }

    /// <summary>The tombstone is durable: the slot may begin anew.</summary>
    public void Release(uint slot)
    {
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
            if (s.Kind is MetadataKind.Extent or MetadataKind.VolumeHead || s.IsDirty) Used++;
            else _free.Push(slot);
        }
    }

    public void Reach(uint slot) => Next = Math.Max(Next, slot + 1);
}
