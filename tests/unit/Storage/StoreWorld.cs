using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>A store on a medium in RAM, one volume in it; opened again as often as a test likes.</summary>
internal sealed class StoreWorld
{
    public static readonly Guid VolumeUuid = new("00112233-4455-6677-8899-aabbccddeeff");

    public StoreWorld(ulong seed, ulong mediumBytes, ulong volumeBytes, StoreOptions options)
    {
        Loop = new SimLoop(seed);
        File = new FaultyFile(new MemoryFile(Loop, mediumBytes));
        Options = options;
        Assert.Null(Loop.Run(BlockServer.Storage.Store.FormatAsync(Loop, File, options)));
        Store = Open();
        if (volumeBytes > 0) Assert.Equal(IoStatus.Ok, Loop.Run(Store.CreateVolumeAsync(HeadOf(7, volumeBytes))));
    }

    public SimLoop Loop { get; }

    public FaultyFile File { get; private set; }

    public StoreOptions Options { get; set; }

    public IStore Store { get; private set; }

    public IBlockDevice Device => Store.OpenVolume(7)!;

    public StoreGeometry Geometry
    {
        get
        {
            Assert.Null(StoreGeometry.Plan(File.SizeBytes, Options.RingBytes, Options.SlotFraction, out StoreGeometry geometry));
            return geometry;
        }
    }

    public static VolumeHead HeadOf(uint id, ulong bytes) => new(id, VolumeUuid, $"v{id}", bytes, 1);

    public static byte[] Pattern(ulong seed, int length)
    {
        var data = new byte[length];
        new SeededRandom(seed).Fill(data);
        return data;
    }

    /// <summary>Another process takes the medium; with <paramref name="isClean"/> the first one closes before.</summary>
    public void Reopen(bool isClean)
    {
        if (isClean) Assert.Equal(IoStatus.Ok, Loop.Run(Store.CloseAsync()));
        Cut();
        Store = Open();
    }

    /// <summary>The process dies.</summary>
    public void Cut()
    {
        File.Cut();
        File = new FaultyFile(File.Medium);
    }

    public StoreOpenResult TryOpen() => Loop.Run(BlockServer.Storage.Store.OpenAsync(Loop, File, null, Options));

    public void Use(IStore store) => Store = store;

    public void Write(ulong offset, byte[] data, IoStatus expected = IoStatus.Ok) =>
        Assert.Equal(expected, Loop.Run(Device.WriteAsync(offset, data, WriteFlags.None)));

    public byte[] Read(ulong offset, int length)
    {
        var data = new byte[length];
        Assert.Equal(IoStatus.Ok, Loop.Run(Device.ReadAsync(offset, data)).Status);
        return data;
    }

    public IoStatus ReadStatus(ulong offset, int length) => Loop.Run(Device.ReadAsync(offset, new byte[length])).Status;

    private IStore Open()
    {
        StoreOpenResult result = TryOpen();
        Assert.Null(result.Refusal);
        return result.Store!;
    }
}

/// <summary>A medium that can be cut off, and of which single blocks fail to be written or read.</summary>
internal sealed class FaultyFile(IFile medium) : IFile
{
    private bool _isCut;

    public IFile Medium => medium;

    public ulong SizeBytes => medium.SizeBytes;

    /// <summary>Blocks that answer EIO to every write.</summary>
    public HashSet<ulong> BadWrites { get; } = [];

    /// <summary>Blocks that answer EIO to every read.</summary>
    public HashSet<ulong> BadReads { get; } = [];

    /// <summary>Blocks that answer EIO to reads until they are written, as a sector that the drive remaps.</summary>
    public HashSet<ulong> ReadableWhenWritten { get; } = [];

    /// <summary>Set, reads wait for it before they reach the medium.</summary>
    public LoopEvent<bool>? ReadsHeld { get; set; }

    /// <summary>Reads so far, by their first block.</summary>
    public List<ulong> Reads { get; } = [];

    /// <summary>Told of each write, by its first block, when it begins.</summary>
    public Action<ulong>? Writing { get; set; }

    public void Cut() => _isCut = true;

    public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        if (_isCut) return Never();
        Reads.Add(offsetBytes >> Units.BlockShift);
        if (ReadsHeld is not null) return ReadLaterAsync(ReadsHeld, offsetBytes, target);
        return Touches(BadReads, offsetBytes, target.Length) || Touches(ReadableWhenWritten, offsetBytes, target.Length)
            ? Fail(medium.ReadAsync(offsetBytes, target))
            : medium.ReadAsync(offsetBytes, target);
    }

    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source)
    {
        if (_isCut) return Never();
        Writing?.Invoke(offsetBytes >> Units.BlockShift);
        if (Touches(BadWrites, offsetBytes, source.Length)) return Fail(medium.FlushAsync());
        ReadableWhenWritten.RemoveWhere(b => b << Units.BlockShift >= offsetBytes && b << Units.BlockShift < offsetBytes + (ulong)source.Length);
        return medium.WriteAsync(offsetBytes, source);
    }

    /// <summary>Flushes so far.</summary>
    public int Flushes { get; private set; }

    public ValueTask<IoStatus> FlushAsync()
    {
        Flushes++;
        return _isCut ? Never() : medium.FlushAsync();
    }

    public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) =>
        _isCut ? Never() : medium.DiscardAsync(offsetBytes, lengthBytes);

    /// <summary>Changes a bit of a block behind the store's back.</summary>
    public void Rot(SimLoop loop, ulong block)
    {
        var page = new byte[Units.BlockBytes];
        loop.Run(medium.ReadAsync(block << Units.BlockShift, page));
        page[1234] ^= 4;
        loop.Run(medium.WriteAsync(block << Units.BlockShift, page));
    }

    private static bool Touches(HashSet<ulong> blocks, ulong offset, int length)
    {
        for (ulong block = offset >> Units.BlockShift; blocks.Count > 0 && block << Units.BlockShift < offset + (ulong)length; block++)
        {
            if (blocks.Contains(block)) return true;
        }

        return false;
    }

    private async ValueTask<IoStatus> ReadLaterAsync(LoopEvent<bool> held, ulong offsetBytes, Memory<byte> target)
    {
        await held.WaitAsync();
        return await medium.ReadAsync(offsetBytes, target);
    }

    private static async ValueTask<IoStatus> Fail(ValueTask<IoStatus> done)
    {
        await done;
        return IoStatus.IoError;
    }

    private static ValueTask<IoStatus> Never() => new LoopEvent<IoStatus>().WaitAsync();
}
