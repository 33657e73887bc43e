using BlockServer.Core;
using BlockServer.Pfinspect;
using BlockServer.Storage;

namespace BlockServer.Tests.Unit.Pfinspect;

/// <summary>Lays a store out by hand, byte by byte as the format says, and runs pfinspect on it.</summary>
internal sealed class StoreBuilder : IDisposable
{
    public const ulong Incarnation = 3;
    private static readonly Guid Uuid = Guid.Parse("0c0ffee0-1234-4321-8888-000000000001");
    private readonly byte[] _bytes = new byte[4 << 20];
    private readonly uint _fold = Seal.Fold(Uuid);
    private readonly byte[] _page = new byte[Units.BlockBytes];
    private readonly Dictionary<uint, ulong> _lastLsn = [];
    private int _used;
    private ushort _count;
    private uint _previousCrc;

    public StoreBuilder()
    {
        if (StoreGeometry.Plan((ulong)_bytes.Length, 32 * 4096, 0.02, out StoreGeometry geometry) is { } fault)
            throw new InvalidOperationException(fault);
        Geometry = geometry;
        PageNumber = 40; // not the ring's first page, and its second lap
        Root = new Superblock
        {
            StoreUuid = Uuid, Geometry = geometry, Incarnation = Incarnation, StartLsn = PageNumber * 4096 - 1, Sequence = 9, SlotHighWater = 8,
        };
        for (int copy = 0; copy < 4; copy++) PutRoot(copy, Root);
        for (uint slot = 0; slot < Root.SlotHighWater; slot++)
        {
            PutTombstone(slot, 0, 0);
            PutTombstone(slot, 1, 0);
        }

        BeginPage();
    }

    public string Path { get; } = System.IO.Path.Combine(System.IO.Path.GetTempPath(), $"pfinspect-{Guid.NewGuid():N}.store");
    public StoreGeometry Geometry { get; }
    public Superblock Root { get; set; }
    public ulong PageNumber { get; private set; }
    public string Out { get; private set; } = "";
    public string Error { get; private set; } = "";

    public static VolumeHeadLayout Volume(uint id, string name, ulong size = 2 << 20) =>
        new() { Head = new VolumeHead(id, new Guid((int)id, 0, 0, new byte[8]), name, size, 1) };

    public void PutRoot(int copy, Superblock root) =>
        (root with { Copy = copy }).WriteTo(_bytes.AsSpan((int)Geometry.SuperblockOffset(copy), 4096));

    public uint PutData(uint block, byte fill)
    {
        Span<byte> data = _bytes.AsSpan((int)block * 4096, 4096);
        data.Fill(fill);
        return Crc32C.Compute(data);
    }

    public void PutHome(uint slot, int home, ulong lsn, uint volume, uint extent, params (int Index, BlockEntry Entry)[] entries)
    {
        Span<byte> page = Home(slot, home, lsn);
        new MetadataPageHeader
        {
            Kind = MetadataKind.Extent, VolumeId = volume, Extent = extent, Slot = slot, PageLsn = lsn, MinVersion = 1, MaxVersion = 100,
        }.WriteTo(page);
        foreach ((int index, BlockEntry entry) in entries) MetadataPage.SetEntry(page[64..], index, entry);
        Seal.Put(page, Geometry.HomeOffset(slot, home), _fold);
    }

    /// <summary>An extent of a layer.</summary>
    public void PutLayerHome(uint slot, ulong lsn, LayerId layer, uint extent, params (int Index, BlockEntry Entry)[] entries)
    {
        Span<byte> page = Home(slot, 0, lsn);
        new MetadataPageHeader
        {
            Kind = MetadataKind.Extent, VolumeId = layer.Volume, LayerId = layer.Layer, Extent = extent, Slot = slot, PageLsn = lsn, MinVersion = 1, MaxVersion = 100,
        }.WriteTo(page);
        foreach ((int index, BlockEntry entry) in entries) MetadataPage.SetEntry(page[64..], index, entry);
        Seal.Put(page, Geometry.HomeOffset(slot, 0), _fold);
    }

    public void PutSnapshot(uint slot, ulong lsn, SnapshotLayout snapshot)
    {
        Span<byte> page = Home(slot, 0, lsn);
        new MetadataPageHeader { Kind = MetadataKind.Snapshot, VolumeId = snapshot.Id.Volume, Extent = snapshot.Id.Layer, Slot = slot, PageLsn = lsn }.WriteTo(page);
        snapshot.WriteTo(page[64..]);
        Seal.Put(page, Geometry.HomeOffset(slot, 0), _fold);
    }

    public void PutTombstone(uint slot, int home, ulong lsn)
    {
        Span<byte> page = Home(slot, home, lsn);
        new MetadataPageHeader { Kind = MetadataKind.Free, Slot = slot, PageLsn = lsn }.WriteTo(page);
        Seal.Put(page, Geometry.HomeOffset(slot, home), _fold);
    }

    public void PutHead(uint slot, int home, ulong lsn, VolumeHeadLayout head)
    {
        Span<byte> page = Home(slot, home, lsn);
        new MetadataPageHeader { Kind = MetadataKind.VolumeHead, VolumeId = head.Head.Id, Slot = slot, PageLsn = lsn }.WriteTo(page);
        head.WriteTo(page[64..]);
        Seal.Put(page, Geometry.HomeOffset(slot, home), _fold);
    }

    public void Damage(ulong offset) => _bytes[offset] ^= 0x40;

    public void LogWrite(
        uint slot, uint volume, uint extent, bool isNew, ulong version, int index, uint block, uint crc, bool isContinued = false) =>
        Logged(slot, RedoRecordWriter.Write(
            _page.AsSpan(_used), slot, volume, extent, isNew ? 0 : Before(slot), isNew, version, [new BlockRun(index, 1, block)], [crc],
            isContinued));

    public void LogHole(uint slot, uint volume, uint extent, ulong version, int index) =>
        Logged(slot, RedoRecordWriter.Hole(
            _page.AsSpan(_used), slot, volume, extent, Before(slot), version, [new BlockRun(index, 1, 0)]));

    public void LogVolume(uint slot, VolumeHeadLayout head) => Logged(slot, RedoRecordWriter.Volume(_page.AsSpan(_used), slot, head));

    public void LogBadBlock(uint slot, uint block) =>
        Logged(slot, RedoRecordWriter.BadBlock(_page.AsSpan(_used), slot, Before(slot), block));

    public void PutBadBlocks(uint slot, int home, ulong lsn, params uint[] blocks)
    {
        Span<byte> page = Home(slot, home, lsn);
        new MetadataPageHeader { Kind = MetadataKind.BadBlocks, Slot = slot, PageLsn = lsn }.WriteTo(page);
        for (int i = 0; i < blocks.Length; i++) BitConverter.TryWriteBytes(page[(64 + 4 * i)..], blocks[i]);
        Seal.Put(page, Geometry.HomeOffset(slot, home), _fold);
    }

    public void LogDelete(uint slot, uint volume) =>
        Logged(slot, RedoRecordWriter.VolumeDelete(_page.AsSpan(_used), slot, volume, Before(slot)));

    public void LogDrop(uint slot, uint volume, uint extent = 0) =>
        Logged(slot, RedoRecordWriter.DropPage(_page.AsSpan(_used), slot, volume, extent));

    public void Zero(uint slot, int home) => Home(slot, home).Clear();

    public void ClosePage(ulong durable = 0, ulong tail = 0, ulong incarnation = Incarnation)
    {
        new RedoPageHeader
        {
            StoreFold = _fold, PreviousCrc = _previousCrc, Incarnation = incarnation, PageNumber = PageNumber,
            Lap = (uint)(PageNumber / Geometry.RingPages), Count = _count, UsedBytes = (ushort)_used, DurableLsn = durable, TailLsn = tail,
        }.WriteTo(_page);
        ulong address = Geometry.PageOffset(PageNumber);
        _previousCrc = Seal.Put(_page, address, _fold);
        _page.CopyTo(_bytes.AsSpan((int)address));
        PageNumber++;
        BeginPage();
    }

    public int Run(string command, params string[] more)
    {
        File.WriteAllBytes(Path, _bytes);
        return RunOnFile(command, more);
    }

    public int RunOnFile(string command, params string[] more)
    {
        using var output = new StringWriter();
        using var error = new StringWriter();
        int code = CommandLine.Run([command, Path, .. more], output, error);
        Out = output.ToString();
        Error = error.ToString();
        return code;
    }

    public void Dispose() => File.Delete(Path);

    private Span<byte> Home(uint slot, int home) => _bytes.AsSpan((int)Geometry.HomeOffset(slot, home), 4096);

    private Span<byte> Home(uint slot, int home, ulong lsn)
    {
        _lastLsn[slot] = Math.Max(lsn, Before(slot));
        return Home(slot, home);
    }

    private ulong Before(uint slot) => _lastLsn.GetValueOrDefault(slot);

    private void Logged(uint slot, int length)
    {
        _lastLsn[slot] = PageNumber * 4096 + (ulong)_used;
        _used += length;
        _count++;
    }

    private void BeginPage()
    {
        Array.Clear(_page);
        _used = RedoPageHeader.Size;
        _count = 0;
    }
}
