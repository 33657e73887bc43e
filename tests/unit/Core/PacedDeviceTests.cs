using BlockServer.Core;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

/// <summary>Large requests beside other volumes: in pieces, and the same bytes as in one.</summary>
public sealed class PacedDeviceTests
{
    private const int Size = 64 << 20;

    private readonly SimLoop _loop = new(1);
    private readonly MemoryDevice _memory;
    private readonly Recorder _asked;
    private readonly VolumeAdmission _door, _other;
    private readonly PacedDevice _device;

    public PacedDeviceTests()
    {
        var disk = new DiskShare();
        (_door, _other) = (new VolumeAdmission(_loop, disk), new VolumeAdmission(_loop, disk));
        _memory = new MemoryDevice(Size, _loop);
        _asked = new Recorder(_memory);
        _device = new PacedDevice(_asked, _door);
    }

    [Fact]
    public void Alone_a_large_request_is_one()
    {
        Assert.True(_door.Enter(new AdmissionWaiter(() => { }), Size)); // its own use counts for nothing
        var data = new byte[32 << 20];
        Assert.Equal(IoStatus.Ok, _loop.Run(_device.WriteAsync(0, data, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, _loop.Run(_device.ReadAsync(0, data)).Status);
        Assert.Equal(IoStatus.Ok, _loop.Run(_device.WriteZeroesAsync(0, Size, WriteFlags.NoHole)));
        Assert.Equal([32 << 20, 32 << 20, Size], _asked.Lengths);
    }

    [Theory]
    [InlineData(0, 32 << 20)]
    [InlineData(4096 + 512, (3 << 20) + 512)]
    [InlineData((1 << 20) - 512, (1 << 20) + 1024)]
    [InlineData(Size - (2 << 20), 2 << 20)]
    public void Beside_others_it_is_done_piece_by_piece(int offset, int length)
    {
        var data = new byte[length];
        new Random(7).NextBytes(data);
        Neighbour();
        Assert.Equal(IoStatus.Ok, Run(_device.WriteAsync((ulong)offset, data, WriteFlags.Fua)));
        Assert.Equal(WriteFlags.Fua, _asked.FlagsOfAll);
        Pieces(PacedDevice.WriteBytes, offset, length);
        var read = new byte[length];
        Assert.Equal(IoStatus.Ok, Run(_device.ReadAsync((ulong)offset, read)).Status);
        Pieces(PacedDevice.ReadBytes, offset, length);
        Assert.Equal(data, read);
        Assert.Equal(IoStatus.Ok, Run(_device.WriteZeroesAsync((ulong)offset, (ulong)length, WriteFlags.NoHole)));
        Pieces(PacedDevice.WriteBytes, offset, length);
        Assert.Equal(IoStatus.Ok, Run(_device.ReadAsync((ulong)offset, read)).Status);
        Assert.Equal(new byte[length], read);
        Assert.Equal(1, _memory.InFlightMax);
    }

    [Fact]
    public void A_request_that_a_power_cut_leaves_whole_is_not_cut()
    {
        Neighbour();
        Assert.Equal(IoStatus.Ok, Run(_device.WriteAsync(512, new byte[PacedDevice.WriteBytes], WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, Run(_device.WriteZeroesAsync(512, PacedDevice.WriteBytes, WriteFlags.NoHole)));
        Assert.Equal([PacedDevice.WriteBytes, PacedDevice.WriteBytes], _asked.Lengths);
    }

    [Fact]
    public void When_the_others_rest_the_remainder_goes_in_one()
    {
        Assert.True(_other.Enter(new AdmissionWaiter(() => { }), 4096));
        Assert.True(_door.Enter(new AdmissionWaiter(() => { }), 4096));
        _asked.OnRead = () => _loop.Run(_loop.DelayAsync(1_000_000_000));
        Assert.Equal(IoStatus.Ok, Run(_device.ReadAsync(0, new byte[1 << 20])).Status);
        Assert.Equal([128 << 10, 896 << 10], _asked.Lengths);
    }

    [Fact]
    public void A_request_past_the_end_does_nothing_and_a_failed_piece_ends_it()
    {
        Neighbour();
        Assert.Equal(IoStatus.OutOfRange, Run(_device.WriteAsync(Size - (1 << 20), new byte[2 << 20], WriteFlags.None)));
        Assert.Equal(IoStatus.OutOfRange, Run(_device.ReadAsync(Size - (1 << 20), new byte[2 << 20])).Status);
        Assert.Equal(IoStatus.OutOfRange, Run(_device.WriteZeroesAsync(Size - (1 << 20), 2 << 20, WriteFlags.NoHole)));
        Assert.Equal([2 << 20, 2 << 20, 2 << 20], _asked.Lengths);
        _memory.Fails = IoStatus.IoError;
        Assert.Equal(IoStatus.IoError, Run(_device.ReadAsync(0, new byte[2 << 20])).Status);
        Assert.Equal(IoStatus.IoError, Run(_device.WriteAsync(0, new byte[2 << 20], WriteFlags.None)));
        Assert.Equal([2 << 20, 2 << 20, 2 << 20, 128 << 10, 1 << 20], _asked.Lengths);
    }

    [Fact]
    public void Holes_are_told_of_whichever_piece_has_them()
    {
        Neighbour();
        Assert.Equal(IoStatus.Ok, Run(_device.WriteAsync(0, new byte[1 << 20], WriteFlags.None)));
        Assert.False(Run(_device.ReadAsync(0, new byte[1 << 20])).HasHoles);
        Assert.True(Run(_device.ReadAsync(0, new byte[(1 << 20) + 4096])).HasHoles);
        Assert.True(Run(_device.ReadAsync(512 << 10, new byte[1 << 20])).HasHoles);
    }

    private T Run<T>(ValueTask<T> request) => _loop.Run(request);

    /// <summary>Two volumes use the disk, and go on as long as something happens.</summary>
    private void Neighbour()
    {
        foreach (VolumeAdmission door in (VolumeAdmission[])[_door, _other]) Touch(door);

        void Touch(VolumeAdmission door)
        {
            Assert.True(door.Enter(new AdmissionWaiter(() => { }), 4096));
            door.Exit(4096);
            _loop.Schedule(20_000_000, () => Touch(door));
        }
    }

    private void Pieces(int pieceBytes, int offset, int length)
    {
        Assert.Equal(length, _asked.Lengths.Sum());
        Assert.Equal(((offset + length - 1) / pieceBytes) - (offset / pieceBytes) + 1, _asked.Lengths.Count);
        Assert.True(_asked.Lengths.Max() <= pieceBytes);
        _asked.Lengths.Clear();
    }

    /// <summary>Notes how long the requests are.</summary>
    private sealed class Recorder(IBlockDevice device) : IBlockDevice
    {
        public List<int> Lengths { get; } = [];

        public WriteFlags FlagsOfAll { get; private set; } = WriteFlags.Fua;

        public Action? OnRead { get; set; }

        public ulong SizeBytes => device.SizeBytes;

        public bool IsReadOnly => device.IsReadOnly;

        public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
        {
            Lengths.Add(target.Length);
            OnRead?.Invoke();
            return device.ReadAsync(offsetBytes, target);
        }

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
        {
            Lengths.Add(source.Length);
            FlagsOfAll &= flags;
            return device.WriteAsync(offsetBytes, source, flags);
        }

        public ValueTask<IoStatus> FlushAsync() => device.FlushAsync();

        public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
            device.TrimAsync(offsetBytes, lengthBytes, flags);

        public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
        {
            Lengths.Add((int)lengthBytes);
            return device.WriteZeroesAsync(offsetBytes, lengthBytes, flags);
        }

        public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => device.PrefetchAsync(offsetBytes, lengthBytes);

        public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
            device.MapAsync(offsetBytes, lengthBytes, runsMax, runs);
    }
}
