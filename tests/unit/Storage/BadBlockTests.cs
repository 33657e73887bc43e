using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

public class BadBlockTests
{
    private static readonly StoreOptions Small = new() { RingBytes = 256 << 10, SlotFraction = 0.02 };

    [Theory]
    [InlineData(1)]
    [InlineData(16)]
    [InlineData(256)]
    [InlineData(400)]
    public void A_write_that_the_medium_does_not_take_goes_elsewhere_and_the_block_is_never_used_again(int blocks)
    {
        var world = new StoreWorld((ulong)blocks, 32 << 20, 16 << 20, Small);
        // Every 23rd block of the whole store is bad, the the very first of them too.
        for (ulong block = world.Geometry.DataStart; block < world.Geometry.DataEnd; block += 23) world.File.BadWrites.Add(block);
        HashSet<ulong> bad = world.File.BadWrites;
        byte[] data = StoreWorld.Pattern(1, blocks * 4096);
        world.Write(40960, data);
        Assert.Equal(data, world.Read(40960, data.Length));
        ulong found = world.Store.GetStats().BlocksBad;
        if (blocks == 1) Assert.Equal(1UL, found);
        Assert.InRange(found, blocks > 23 ? 1UL : 0, (ulong)blocks + 1);
        world.Reopen(isClean: false);
        Assert.Equal(data, world.Read(40960, data.Length));
        Assert.Equal(found, world.Store.GetStats().BlocksBad);
        world.Reopen(isClean: true);
        Assert.Equal(found, world.Store.GetStats().BlocksBad);

        // Written over and over until every block had its turn: a bad one is never tried a second time.
        world.File.BadWrites.UnionWith(bad);
        for (ulong round = 0; round < 40; round++)
        {
            byte[] next = StoreWorld.Pattern(round, 1 << 20);
            world.Write(round % 4 << 20, next);
            Assert.Equal(next, world.Read(round % 4 << 20, 1 << 20));
        }

        StoreStats stats = world.Store.GetStats();
        Assert.True(stats.BlocksBad > found);
        Assert.True(stats.BlocksBad <= (ulong)bad.Count);
        Assert.Equal(StoreState.Online, world.Store.State);
    }

    [Fact]
    public void The_same_block_is_not_written_again()
    {
        var world = new StoreWorld(2, 32 << 20, 16 << 20, Small);
        ulong first = world.Geometry.DataStart; // small writes begin here
        world.File.BadWrites.Add(first);
        world.Write(0, StoreWorld.Pattern(1, 4096));
        Assert.Equal(1UL, world.Store.GetStats().BlocksBad);
        Assert.Equal(2UL, world.Store.GetStats().IoErrors); // the write and its second try
        for (ulong round = 0; round < 20_000; round++) world.Write(round % 64 << 12, StoreWorld.Pattern(round, 4096));
        Assert.Equal(2UL, world.Store.GetStats().IoErrors);
    }

    [Fact]
    public void A_request_across_two_extents_moves_as_a_whole()
    {
        for (ulong bad = 0; bad < 4; bad++)
        {
            var world = new StoreWorld(3 + bad, 32 << 20, 16 << 20, Small);
            world.File.BadWrites.Add(world.Geometry.DataStart + bad);
            byte[] data = StoreWorld.Pattern(bad, 3 * 4096 + 100);
            world.Write((1 << 20) - 8192 + 50, data);
            Assert.Equal(1UL, world.Store.GetStats().BlocksBad);
            Assert.Equal(data, world.Read((1 << 20) - 8192 + 50, data.Length));
            world.Reopen(isClean: false);
            Assert.Equal(data, world.Read((1 << 20) - 8192 + 50, data.Length));
        }
    }

    [Fact]
    public void When_every_other_place_fails_too_the_store_stops()
    {
        var world = new StoreWorld(9, 32 << 20, 16 << 20, Small);
        for (ulong block = world.Geometry.DataStart; block < world.Geometry.DataEnd; block++) world.File.BadWrites.Add(block);
        world.Write(0, StoreWorld.Pattern(1, 8192), IoStatus.Unavailable);
        Assert.Equal(StoreState.Failed, world.Store.State);
        world.Cut();
        Assert.Null(world.TryOpen().Refusal);
    }

    [Fact]
    public void A_block_that_rots_gives_errors_for_itself_only_and_a_fresh_write_heals_it()
    {
        var world = new StoreWorld(4, 32 << 20, 16 << 20, Small);
        byte[] data = StoreWorld.Pattern(5, 64 * 4096);
        world.Write(0, data);
        ulong rotten = FindBlock(world, data.AsSpan(20 * 4096, 4096));
        world.File.Rot(world.Loop, rotten);
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(20 * 4096, 4096));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(20 * 4096 + 512, 512));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(0, 64 * 4096));
        Assert.Equal(data[..(20 * 4096)], world.Read(0, 20 * 4096));
        Assert.Equal(data[(21 * 4096)..], world.Read(21 * 4096, 43 * 4096));
        // A part of the block cannot be merged with what is not known; the map says that there is data.
        Assert.Equal(IoStatus.Corrupt, world.Loop.Run(world.Device.WriteAsync(20 * 4096 + 512, new byte[512], WriteFlags.None)));
        Assert.Equal(IoStatus.Corrupt, world.Loop.Run(world.Device.WriteZeroesAsync(20 * 4096 + 512, 512, WriteFlags.None)));
        var runs = new List<MapRun>();
        world.Loop.Run(world.Device.MapAsync(0, 64 * 4096, 10, runs));
        Assert.Equal([new MapRun(64 * 4096, false)], runs);

        ScrubReport scrub = world.Loop.Run(world.Store.ScrubAsync(7, 0, null, CancellationToken.None));
        Assert.Equal([new BadBlock(7, 20 * 4096, IoStatus.Corrupt)], scrub.Bad);
        Assert.Equal(1UL, world.Store.GetStats().BlocksBad);

        byte[] fresh = StoreWorld.Pattern(6, 4096);
        world.Write(20 * 4096, fresh);
        Assert.Equal(fresh, world.Read(20 * 4096, 4096));
        world.Reopen(isClean: true);
        Assert.Equal(1UL, world.Store.GetStats().BlocksBad);
        scrub = world.Loop.Run(world.Store.ScrubAsync(7, 0, null, CancellationToken.None));
        Assert.Empty(scrub.Bad);
        // It never gets content again.
        var before = new byte[4096];
        world.Loop.Run(world.File.ReadAsync(rotten << 12, before));
        for (ulong round = 0; round < 60; round++) world.Write(round % 4 << 20, StoreWorld.Pattern(round, 1 << 20));
        var after = new byte[4096];
        world.Loop.Run(world.File.ReadAsync(rotten << 12, after));
        Assert.Equal(before, after);
    }

    [Fact]
    public void An_unreadable_block_gives_an_error_for_itself_only()
    {
        var world = new StoreWorld(5, 32 << 20, 16 << 20, Small);
        byte[] data = StoreWorld.Pattern(5, 8 * 4096);
        world.Write(0, data);
        world.File.BadReads.Add(FindBlock(world, data.AsSpan(3 * 4096, 4096)));
        Assert.Equal(IoStatus.IoError, world.ReadStatus(3 * 4096, 4096));
        Assert.Equal(data[..(3 * 4096)], world.Read(0, 3 * 4096));
        Assert.Equal(data[(4 * 4096)..], world.Read(4 * 4096, 4 * 4096));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(3 * 4096, 4096, WriteFlags.None)));
        Assert.All(world.Read(3 * 4096, 4096), b => Assert.Equal(0, b));
    }

    private static ulong FindBlock(StoreWorld world, ReadOnlySpan<byte> content)
    {
        byte[] wanted = content.ToArray();
        var page = new byte[4096];
        for (ulong block = world.Geometry.DataStart; block < world.Geometry.DataEnd; block++)
        {
            world.Loop.Run(world.File.Medium.ReadAsync(block << 12, page));
            if (page.AsSpan().SequenceEqual(wanted)) return block;
        }

        Assert.Fail("no block has this content");
        return 0;
    }
}
