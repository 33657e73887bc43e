using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>A volume in RAM: its head and its layers. Lives on one loop.</summary>
internal sealed class Volume
{
    public VolumeHead Head;
    public readonly uint Slot;
    public bool IsDeleting;
    public bool IsChanging;
    public ulong UsedBlocks;

    /// <summary>Blocks that changes in the log add to <see cref="UsedBlocks"/>.</summary>
    public ulong GrowthInLog;

    /// <summary>Metadata pages of all its layers.</summary>
    public uint Pages;

    /// <summary>Blocks that it may take with all its layers, whatever others do; 0: as many as are free.</summary>
    public ulong PromisedBlocks;

    /// <summary>Metadata pages that it may begin.</summary>
    public uint PromisedSlots;

    /// <summary>What of <see cref="PromisedBlocks"/> it has not taken yet.</summary>
    public ulong BlocksLeft;

    /// <summary>What of <see cref="PromisedSlots"/> it has not taken yet.</summary>
    public uint SlotsLeft;

    /// <summary>A page was lost and nobody knows which (accepted data loss): an extent without one may have had one, so it
    /// is unknown, not a hole.</summary>
    public bool IsDoubtful;

    /// <summary>It shrank, and what lies behind its end could not be dropped for lack of slots: no view of it may become larger
    /// than it, nor a snapshot be cut, before that is done.</summary>
    public bool IsOverhanging;

    /// <summary>What it shares with the layer below its first one is being copied.</summary>
    public bool IsFlattening;

    /// <summary>That it shares nothing any more is written down, and not durable yet.</summary>
    public bool IsLettingGo;

    /// <summary>The layer that is written to.</summary>
    public Layer Top;

    /// <summary>Every layer, the top one too, by number.</summary>
    public readonly SortedDictionary<uint, Layer> Layers = [];

    /// <summary>Snapshots that are not being deleted, by identity and by name: there may be ten thousand.</summary>
    public readonly Dictionary<Guid, Layer> Snapshots = [];

    /// <summary>See <see cref="Snapshots"/>.</summary>
    public readonly Dictionary<string, Layer> SnapshotsByName = new(StringComparer.Ordinal);

    /// <summary>Those who hold changes back, for a cut.</summary>
    public int Freezes;

    /// <summary>Changes in the log that are not answered yet.</summary>
    public int InFlight;

    /// <summary>Set when <see cref="InFlight"/> is 0.</summary>
    public LoopEvent<bool>? Drained;

    /// <summary>Changes that wait for the end of a freeze.</summary>
    public readonly Queue<FlushWait> Held = new();

    /// <summary>How long it is, whose appends are remembered, and who waits; null when it is not append-only.</summary>
    public readonly AppendState? Appends;

    public Volume(VolumeHead head, uint slot, SlotTable slots, uint layer = 0, Layer? basis = null)
    {
        Head = head;
        Slot = slot;
        if (head.IsAppendOnly) Appends = new AppendState();
        var line = new Line(slots, basis);
        line.Tip = Top = new Layer(this, layer, basis, line);
        Layers.Add(layer, Top);
        basis?.Children.Add(Top);
    }

    /// <summary>The layer became a snapshot, or one that goes, as its head says.</summary>
    public void Note(Layer layer)
    {
        if (!layer.IsDeleting)
        {
            Snapshots[layer.Head.Uuid] = layer;
            SnapshotsByName[layer.Head.Name] = layer;
        }
        else if (Snapshots.Remove(layer.Head.Uuid))
        {
            SnapshotsByName.Remove(layer.Head.Name);
        }
    }

    /// <summary>The line that shows what is written.</summary>
    public Line Line => Top.Line;
}
