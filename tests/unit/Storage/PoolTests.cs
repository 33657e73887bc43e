using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>A store whose memory for requests is lent out to the last byte.</summary>
public class PoolTests
{
    /// <summary>Requests with cut blocks hold memory until they are answered, and they are answered when the log is: so the
    /// log takes its pages from elsewhere.</summary>
    [Fact]
    public void The_log_goes_on_when_requests_hold_all_the_memory()
    {
        var options = new StoreOptions { RingBytes = 4 << 20 };
        var world = new StoreWorld(1, 700UL << 20, 600UL << 20, options);
        world.Cut();
        var gate = new GatedFile(world.File, from: world.Geometry.DataStart * 4096UL);
        world.Use(world.Loop.Run(Store.OpenAsync(world.Loop, gate, null, options)).Store!);
        byte[] large = StoreWorld.Pattern(1, 1 << 20);
        var running = new List<Task<IoStatus>>();
        gate.IsShut = true;
        // 257 blocks each, as many as the pool has room for and some that wait for it.
        for (ulong i = 0; i < 260; i++) running.Add(world.Device.WriteAsync((2 * i << 20) + 512, large, WriteFlags.None).AsTask());
        world.Loop.RunUntil(() => false, 20_000);
        Assert.All(running, r => Assert.False(r.IsCompleted));
        byte[] small = StoreWorld.Pattern(2, 4096);
        running.Add(world.Device.WriteAsync(560 << 20, small, WriteFlags.None).AsTask());
        world.Loop.RunUntil(() => false, 20_000);
        gate.Open();
        Assert.True(world.Loop.RunUntil(() => running.TrueForAll(r => r.IsCompleted)));
        Assert.All(running, r => Assert.Equal(IoStatus.Ok, r.Result));
        Assert.Equal(small, world.Read(560 << 20, 4096));
    }

    /// <summary>Writes from an offset on wait until the gate opens. Large ones leave nothing, for nobody reads them.</summary>
    private sealed class GatedFile(IFile medium, ulong from) : IFile
    {
        private readonly List<LoopEvent<bool>> _waiting = [];

        public bool IsShut { get; set; }

        public ulong SizeBytes => medium.SizeBytes;

        public void Open()
        {
            IsShut = false;
            foreach (LoopEvent<bool> waiting in _waiting) waiting.Set(true);
        }

        public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) => medium.ReadAsync(offsetBytes, target);

        public async ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source)
        {
            if (IsShut && offsetBytes >= from)
            {
                var turn = new LoopEvent<bool>();
                _waiting.Add(turn);
                await turn.WaitAsync();
                if (source.Length > Units.BlockBytes) return IoStatus.Ok;
            }

            return await medium.WriteAsync(offsetBytes, source);
        }

        public ValueTask<IoStatus> FlushAsync() => medium.FlushAsync();

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => medium.DiscardAsync(offsetBytes, lengthBytes);
    }
}
