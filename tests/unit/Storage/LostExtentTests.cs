using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>Data loss that an operator accepted: never wrong, zeros never invented (P4).</summary>
public class LostExtentTests
{
    private static readonly StoreOptions Small = new() { RingBytes = 256 << 10, SlotFraction = 0.02 };
    private static readonly StoreOptions Accepting = Small with { AcceptDataLoss = true };

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void An_extent_of_which_both_homes_are_lost_is_no_zeros_until_it_is_overwritten_or_trimmed(bool isUnreadable)
    {
        StoreWorld world = Filled(1, extents: 4);
        Damage(world, slot: 2, isUnreadable, 0, 1);
        Assert.Contains("accept data loss", Refusal(world));
        Reopen(world, Accepting);
        for (int round = 0; round < 2; round++)
        {
            Assert.Equal(IoStatus.Corrupt, world.ReadStatus(1 << 20, 4096));
            Assert.Equal(IoStatus.Corrupt, world.ReadStatus(1 << 20, 1 << 20));
            // No home says whose the slot was, so no extent without a page may be taken for a hole.
            Assert.Equal(IoStatus.Corrupt, world.ReadStatus(6 << 20, 4096));
            foreach (ulong extent in new ulong[] { 0, 2, 3 }) Assert.Equal(StoreWorld.Pattern(extent, 1 << 20), world.Read(extent << 20, 1 << 20));
            Assert.Equal(IoStatus.Corrupt, world.Loop.Run(world.Device.WriteAsync(1 << 20, new byte[4096], WriteFlags.None)));
            Assert.Equal(IoStatus.Corrupt, world.Loop.Run(world.Device.TrimAsync(1 << 20, 4096, WriteFlags.None)));
            var runs = new List<MapRun>();
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.MapAsync(0, 8 << 20, 10, runs)));
            Assert.Equal([new MapRun(8 << 20, false)], runs);
            // The loss is settled: from now on nothing has to be accepted, and the doubt stays.
            Reopen(world, Small);
        }

        byte[] fresh = StoreWorld.Pattern(77, 1 << 20);
        world.Write(1 << 20, fresh);
        Assert.Equal(fresh, world.Read(1 << 20, 1 << 20));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(6 << 20, 1 << 20, WriteFlags.None)));
        Assert.All(world.Read(6 << 20, 1 << 20), b => Assert.Equal(0, b));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(2 << 20, 1 << 20, WriteFlags.None)));
        Reopen(world, Small, isClean: false);
        Assert.Equal(fresh, world.Read(1 << 20, 1 << 20));
        Assert.All(world.Read(6 << 20, 1 << 20), b => Assert.Equal(0, b));
        Assert.All(world.Read(2 << 20, 1 << 20), b => Assert.Equal(0, b));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(7 << 20, 4096));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void An_extent_with_one_damaged_home_is_unknown_because_the_other_may_be_older(int home)
    {
        StoreWorld world = Filled(2, extents: 4);
        // Twice, so that both homes have an image; the newer one is the one that was written last.
        for (ulong extent = 0; extent < 4; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent + 10, 1 << 20));
        Reopen(world, Small);
        Damage(world, slot: 2, isUnreadable: false, home);
        Assert.Contains("accept data loss", Refusal(world));
        Reopen(world, Accepting);
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(1 << 20, 4096));
        foreach (ulong extent in new ulong[] { 0, 2, 3 }) Assert.Equal(StoreWorld.Pattern(extent + 10, 1 << 20), world.Read(extent << 20, 1 << 20));
        Assert.All(world.Read(6 << 20, 4096), b => Assert.Equal(0, b)); // its extent is known, so nothing else is in doubt
        Reopen(world, Small);
        byte[] fresh = StoreWorld.Pattern(50, 8192);
        world.Write((1 << 20) + 4096, fresh);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync((1 << 20) + (40 << 12), 4096, WriteFlags.None)));
        Reopen(world, Small, isClean: false);
        Assert.Equal(fresh, world.Read((1 << 20) + 4096, 8192));
        Assert.All(world.Read((1 << 20) + (40 << 12), 4096), b => Assert.Equal(0, b));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(1 << 20, 4096));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus((1 << 20) + (3 << 12), 4096));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(1 << 20, 1 << 20, WriteFlags.None)));
        Assert.All(world.Read(1 << 20, 1 << 20), b => Assert.Equal(0, b));
    }

    [Fact]
    public void What_the_log_says_of_a_lost_extent_is_kept()
    {
        StoreWorld world = Filled(3, extents: 4);
        byte[] later = StoreWorld.Pattern(99, 8192);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync((1 << 20) + 4096, later, WriteFlags.Fua)));
        world.Cut();
        Damage(world, slot: 2, isUnreadable: false, 0, 1);
        Assert.NotNull(world.TryOpen().Refusal);
        world.Options = Accepting;
        StoreOpenResult opened = world.TryOpen();
        Assert.Null(opened.Refusal);
        world.Use(opened.Store!);
        Assert.Equal(later, world.Read((1 << 20) + 4096, 8192));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(1 << 20, 4096));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus((1 << 20) + (3 << 12), 4096));
        Assert.All(world.Read(6 << 20, 4096), b => Assert.Equal(0, b)); // the log named the extent
    }

    [Fact]
    public void Extents_without_a_head_get_a_new_one()
    {
        StoreWorld world = Filled(4, extents: 3);
        Damage(world, slot: 0, isUnreadable: false, 0, 1);
        Assert.NotNull(Refusal(world));
        Reopen(world, Accepting);
        VolumeHead head = Assert.Single(world.Store.Volumes);
        Assert.Equal((7u, "lost-7", 3UL << 20), (head.Id, head.Name, head.SizeBytes));
        for (ulong extent = 0; extent < 3; extent++) Assert.Equal(StoreWorld.Pattern(extent, 1 << 20), world.Read(extent << 20, 1 << 20));
        Reopen(world, Small);
        Assert.Equal(StoreWorld.Pattern(2, 1 << 20), world.Read(2 << 20, 1 << 20));
    }

    [Fact]
    public void A_cut_at_any_moment_of_accepting_the_loss_never_turns_it_into_zeros()
    {
        for (ulong cutAt = 0; cutAt < 60; cutAt++)
        {
            StoreWorld world = Filled(5, extents: 2);
            Damage(world, slot: 2, isUnreadable: false, 0, 1);
            world.Options = Accepting;
            ulong end = world.Loop.EventCount + cutAt;
            world.Loop.RunToQuiescence(0);
            Task<StoreOpenResult> opening = Store.OpenAsync(world.Loop, world.File, null, Accepting).AsTask();
            world.Loop.RunUntil(() => opening.IsCompleted || world.Loop.EventCount >= end);
            world.Cut();
            StoreOpenResult opened = world.TryOpen();
            Assert.Null(opened.Refusal);
            world.Use(opened.Store!);
            Assert.Equal(IoStatus.Corrupt, world.ReadStatus(1 << 20, 4096));
            Assert.Equal(StoreWorld.Pattern(0, 1 << 20), world.Read(0, 1 << 20));
        }
    }

    /// <summary>Extent n is slot n + 1; all of it is at home.</summary>
    private static StoreWorld Filled(ulong seed, ulong extents)
    {
        var world = new StoreWorld(seed, 32 << 20, 8 << 20, Small);
        for (ulong extent = 0; extent < extents; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 1 << 20));
        world.Reopen(isClean: true);
        world.Reopen(isClean: true);
        return world;
    }

    private static void Damage(StoreWorld world, uint slot, bool isUnreadable, params int[] homes)
    {
        if (world.Store.State == StoreState.Online && !isUnreadable) world.Loop.RunToQuiescence();
        Assert.True(homes.Length > 0);
        foreach (int home in homes)
        {
            ulong block = world.Geometry.HomeOffset(slot, home) >> Units.BlockShift;
            if (isUnreadable) world.Loop.Run(world.File.Medium.WriteAsync(block << Units.BlockShift, StoreWorld.Pattern(block, 4096)));
            else world.File.Rot(world.Loop, block);
        }
    }

    private static string Refusal(StoreWorld world)
    {
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        return world.TryOpen().Refusal!;
    }

    private static void Reopen(StoreWorld world, StoreOptions options, bool isClean = true)
    {
        if (isClean && world.Store.State == StoreState.Online) Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        world.Cut();
        world.Options = options;
        StoreOpenResult opened = world.TryOpen();
        Assert.Null(opened.Refusal);
        world.Use(opened.Store!);
    }
}
