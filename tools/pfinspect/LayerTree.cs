using BlockServer.Core;
using BlockServer.Storage;

namespace BlockServer.Pfinspect;

/// <summary>One layer of a volume, as its head says.</summary>
/// <param name="Id">Volume and number.</param>
/// <param name="Parent">The layer below it, or null.</param>
/// <param name="Cut">Its last version; the largest number while it is written to.</param>
/// <param name="Head">The snapshot's head, or the volume's of the layer that is written to.</param>
public sealed record LayerNode(LayerId Id, LayerId? Parent, ulong Cut, SlotPage Head)
{
    /// <summary>Its extents' pages.</summary>
    public List<SlotPage> Pages { get; } = [];

    /// <summary>Layers that build on it.</summary>
    public List<LayerNode> Children { get; } = [];

    /// <summary>Blocks that it shows, shared or not.</summary>
    public ulong UsedBlocks { get; set; }

    /// <summary>Its own page of an extent, or null.</summary>
    public SlotPage? PageOf(uint extent)
    {
        if (_byExtent.Count == 0)
        {
            foreach (SlotPage page in Pages) _byExtent.TryAdd(page.Extent, page);
        }

        return _byExtent.GetValueOrDefault(extent);
    }

    private readonly Dictionary<uint, SlotPage> _byExtent = [];

    /// <summary>It is a snapshot, not what is written to.</summary>
    public bool IsSnapshot => Head.Kind == MetadataKind.Snapshot;

    /// <summary>It, or its volume, is being deleted.</summary>
    public bool IsDeleting => IsSnapshot ? Head.Snapshot.IsDeleting : Head.Head.IsDeleting;
}

/// <summary>
/// The layers of a store: which builds on which, which page lies below which, and whose a block is. Problems of the tree
/// itself are reported while it is made.
/// </summary>
public sealed class LayerTree
{
    private readonly StoreImage _image;
    private readonly Dictionary<LayerId, LayerNode> _nodes = [];
    private readonly Dictionary<uint, (SlotPage Page, LayerNode Layer)> _below = []; // by slot of the page above

    /// <summary>Puts the layers of a loaded store together.</summary>
    public LayerTree(StoreImage image)
    {
        _image = image;
        var heads = new Dictionary<uint, SlotPage>();
        foreach (SlotPage head in image.Heads) heads.TryAdd(head.VolumeId, head);
        foreach (SlotPage page in image.Snapshots) AddSnapshot(page, heads);
        foreach (SlotPage head in heads.Values)
            _nodes.TryAdd(new LayerId(head.VolumeId, head.Head.Layer), new LayerNode(new LayerId(head.VolumeId, head.Head.Layer), head.Head.Parent, ulong.MaxValue, head));
        foreach (SlotPage page in image.Slots.Values.Where(p => p.Kind == MetadataKind.Extent)) AddPage(page, heads);
        Connect(heads);
        PlacePages();
    }

    /// <summary>Every layer, by volume and number.</summary>
    public IEnumerable<LayerNode> Layers => _nodes.Values.OrderBy(node => node.Id.Volume).ThenBy(node => node.Id.Layer);

    /// <summary>The layer, or null.</summary>
    public LayerNode? Find(LayerId id) => _nodes.GetValueOrDefault(id);

    /// <summary>The page of this extent that the layers below show, and its layer; or null.</summary>
    public (SlotPage Page, LayerNode Layer)? Below(SlotPage page) => _below.TryGetValue(page.Slot, out (SlotPage, LayerNode) below) ? below : null;

    /// <summary>Versions up to this one are shared with the page below.</summary>
    public ulong SharedUpTo(SlotPage page) => Below(page)?.Layer.Cut ?? 0;

    /// <summary>What is seen from the top of a layer: the newest page of each extent on the way down, in order.</summary>
    public IReadOnlyCollection<SlotPage> Shown(LayerNode top)
    {
        var shown = new SortedDictionary<uint, SlotPage>();
        for (LayerNode? at = top; at is not null; at = at.Parent is { } parent ? Find(parent) : null)
        {
            foreach (SlotPage page in at.Pages) shown.TryAdd(page.Extent, page);
        }

        return shown.Values;
    }

    /// <summary>Blocks that belong to the layer: with none below it has them in common.</summary>
    public ulong OwnedBlocks(LayerNode layer)
    {
        ulong owned = 0;
        foreach (SlotPage page in layer.Pages)
        {
            ulong shared = SharedUpTo(page);
            for (int i = 0; i < Units.BlocksPerExtent; i++) owned += IsOwned(page, i, shared) ? 1UL : 0;
        }

        return owned;
    }

    /// <summary>Blocks that go when the layer does: those that no layer on top of it goes on with.</summary>
    public ulong BlocksAlone(LayerNode layer)
    {
        ulong alone = 0;
        foreach (SlotPage page in layer.Pages)
        {
            SlotPage?[] above = [.. layer.Children.Select(child => child.PageOf(page.Extent))];
            if (above.Contains(null)) continue; // it goes over as it is
            ulong shared = SharedUpTo(page);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                if (!IsOwned(page, i, shared)) continue;
                uint block = MetadataPage.Entry(page.Entries, i).Block;
                if (!above.Any(p => MetadataPage.Entry(p!.Entries, i).Block == block)) alone++;
            }
        }

        return alone;
    }

    private static ulong Mapped(SlotPage page)
    {
        ulong mapped = 0;
        for (int i = 0; i < Units.BlocksPerExtent; i++) mapped += MetadataPage.Entry(page.Entries, i).Block is 0 or MetadataPage.UnknownBlock ? 0UL : 1;
        return mapped;
    }

    private static bool IsOwned(SlotPage page, int index, ulong shared) =>
        MetadataPage.Entry(page.Entries, index) is var entry && entry.Block is not (0 or MetadataPage.UnknownBlock) && entry.Version > shared;

    private void AddSnapshot(SlotPage page, Dictionary<uint, SlotPage> heads)
    {
        string where = $"slot {page.Slot}";
        LayerId id = page.Snapshot.Id;
        if (!heads.TryGetValue(id.Volume, out SlotPage? head))
            _image.Problems.Error("layer", where, $"snapshot {page.Snapshot.Name} of volume {id.Volume}, which has no head");
        else if (id.Layer >= head.Head.Layer)
            _image.Problems.Error("layer", where, $"layer {id.Layer} of {head.Head.Head.Name} is said to be cut, but layer {head.Head.Layer} is written to");
        if (!_nodes.TryAdd(id, new LayerNode(id, page.Snapshot.Parent, page.Snapshot.Cut, page)))
            _image.Problems.Error("layer", where, $"layer {id.Layer} of volume {id.Volume} has another head in slot {_nodes[id].Head.Slot}");
        if (page.Snapshot.IsDeleting)
            _image.Problems.Warning("layer", where, $"snapshot {page.Snapshot.Name} of volume {id.Volume} is being deleted; the next open goes on with it");
    }

    private void AddPage(SlotPage page, Dictionary<uint, SlotPage> heads)
    {
        var id = new LayerId(page.VolumeId, page.Layer);
        if (_nodes.TryGetValue(id, out LayerNode? layer))
        {
            layer.Pages.Add(page);
            return;
        }

        // Without any head it is reported once, as an extent of an unknown volume.
        if (heads.ContainsKey(page.VolumeId))
            _image.Problems.Error("layer", $"slot {page.Slot}", $"extent {page.Extent} of volume {page.VolumeId}, layer {page.Layer}, which nothing names: its blocks are leaked");
    }

    private void Connect(Dictionary<uint, SlotPage> heads)
    {
        foreach (LayerNode node in Layers)
        {
            if (node.Parent is not { } id) continue;
            if (_nodes.TryGetValue(id, out LayerNode? parent)) parent.Children.Add(node);
            // Of a volume that goes the newest layers go first, and their heads with them.
            else if (!heads.TryGetValue(node.Id.Volume, out SlotPage? head) || !head.Head.IsDeleting)
                _image.Problems.Error("layer", $"slot {node.Head.Slot}", $"layer {node.Id.Layer} of volume {node.Id.Volume} builds on layer {id.Layer} of volume {id.Volume}, which is not there");
        }
    }

    /// <summary>Goes through the tree once, from the bottom, and remembers what each branch shows on the way.</summary>
    private void PlacePages()
    {
        var shown = new Dictionary<uint, (SlotPage Page, LayerNode Layer)>();
        var path = new Stack<(LayerNode Layer, int Next, List<(uint Extent, (SlotPage, LayerNode)? Before)> Hidden)>();
        var visited = new HashSet<LayerId>();
        foreach (LayerNode root in Layers.Where(node => node.Parent is not { } parent || Find(parent) is null))
        {
            Enter(root);
            while (path.TryPop(out (LayerNode Layer, int Next, List<(uint Extent, (SlotPage, LayerNode)? Before)> Hidden) at))
            {
                if (at.Next < at.Layer.Children.Count)
                {
                    path.Push(at with { Next = at.Next + 1 });
                    Enter(at.Layer.Children[at.Next]);
                    continue;
                }

                foreach ((uint extent, (SlotPage, LayerNode)? before) in at.Hidden)
                {
                    if (before is { } page) shown[extent] = page;
                    else shown.Remove(extent);
                }
            }
        }

        foreach (LayerNode lost in Layers.Where(node => !visited.Contains(node.Id)))
            _image.Problems.Error("layer", $"slot {lost.Head.Slot}", $"layer {lost.Id.Layer} of volume {lost.Id.Volume} builds on itself");

        void Enter(LayerNode layer)
        {
            visited.Add(layer.Id);
            layer.UsedBlocks = layer.Parent is { } id && Find(id) is { } parent ? parent.UsedBlocks : 0;
            var hidden = new List<(uint, (SlotPage, LayerNode)?)>();
            foreach (SlotPage page in layer.Pages)
            {
                bool isThere = shown.TryGetValue(page.Extent, out (SlotPage Page, LayerNode Layer) below);
                // Twice the same extent is reported elsewhere; only the first counts.
                if (isThere && below.Layer == layer) continue;
                if (isThere) _below[page.Slot] = below;
                layer.UsedBlocks += Mapped(page) - (isThere ? Mapped(below.Page) : 0);
                hidden.Add((page.Extent, isThere ? below : null));
                shown[page.Extent] = (page, layer);
            }

            path.Push((layer, 0, hidden));
        }
    }
}
