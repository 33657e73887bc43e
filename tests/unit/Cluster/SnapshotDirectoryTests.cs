using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>Snapshots and clones: whatever fails at whatever step, metadata and stores agree afterwards; the store's word on
/// snapshots holds; nothing is labelled clean that was not said to be.</summary>
public sealed class SnapshotDirectoryTests
{
    private const string Together = "roll back together";

    private static readonly Dictionary<string, Func<VolumeDirectory, Task<DirectoryFault?>>> Operations = new()
    {
        ["cut"] = async d => (await d.CutAsync("new", ["old"], new SnapshotLabel(true))).Fault,
        ["cut a group"] = async d => (await d.CutAsync("new", ["old", "beside"], new SnapshotLabel(true))).Fault,
        ["cut over disks"] = async d => (await d.CutAsync("new", ["old", "beside", "other"], new SnapshotLabel(true))).Fault,
        ["delete snapshot"] = async d => (await d.DeleteSnapshotAsync("old", "small", null)).Fault,
        ["roll back"] = async d => (await d.RollBackAsync("old", "small", "safe")).Fault,
        [Together] = async d => (await d.RollBackTogetherAsync("pair", ["old", "other"], "safe")).Fault,
        ["clone snapshot"] = async d => (await d.CloneAsync("old", new CloneVolume("twin", "small"))).Fault,
        ["clone volume"] = async d => (await d.CloneAsync("old", new CloneVolume("twin"))).Fault,
        ["copy volume"] = async d => (await d.CloneAsync("old", new CloneVolume("twin", Full: true))).Fault,
        ["delete volume"] = async d => (await d.DeleteAsync("old", null, null, withSnapshots: true)).Fault,
    };

    public static TheoryData<string, Mishap> Cases()
    {
        var cases = new TheoryData<string, Mishap>();
        foreach (string operation in Operations.Keys)
        {
            foreach (Mishap mishap in Enum.GetValues<Mishap>()) cases.Add(operation, mishap);
        }

        return cases;
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task A_mishap_at_any_step_leaves_the_old_or_the_new(string operation, Mishap mishap)
    {
        string wanted;
        using (VolumeDirectory directory = await StartedAsync(new DirectoryWorld(), operation == Together))
        {
            Assert.Null(await Operations[operation](directory));
            wanted = await DescribeAsync(directory);
        }

        for (int step = 0; ; step++)
        {
            var world = new DirectoryWorld();
            using VolumeDirectory directory = await StartedAsync(world, operation == Together);
            string before = await DescribeAsync(directory);
            world.Arm(step, mishap);
            DirectoryFault? fault = null;
            bool isAnswered = false;
            try
            {
                fault = await Operations[operation](directory);
                isAnswered = true;
            }
            catch (DeathException)
            {
            }

            bool isReached = world.IsReached;
            world.Disarm();
            string because = $"{operation}, {mishap} at step {step}, answered {(isAnswered ? fault?.Code ?? "ok" : "nothing")}";
            if (isAnswered)
            {
                Assert.Null((await directory.CreateAsync(new CreateVolume("later", Units.MiB))).Fault);
                Assert.Null((await directory.DeleteAsync("later", null, null)).Fault);
                await CheckAsync(world, directory, because);
            }

            using VolumeDirectory again = world.Begin();
            await again.ReconcileAsync(world.Hosts());
            Assert.True(await again.SweepCopiesAsync());
            await CheckAsync(world, again, because);
            string after = await DescribeAsync(again);
            // A snapshot that was cut for a clone may be left when the process died, or nothing answered any more.
            string tidy = operation == "clone volume" && after != wanted ? after.Replace(" old@clone-twin:5242880", "", StringComparison.Ordinal) : after;
            Assert.True(tidy == before || after == wanted, $"{because}: {after}");
            if (isAnswered && fault is null) Assert.True(after == wanted, $"{because}: acknowledged, and is {after}");
            if (!isReached) break;
        }
    }

    [Fact]
    public async Task A_cut_over_disks_is_held_together_and_of_one_disk_needs_no_gate()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        world.Gates.Clear();
        Assert.Null((await d.CutAsync("one", ["old", "beside"], default)).Fault);
        Assert.Equal(["cut"], world.Gates);
        world.Gates.Clear();
        SnapshotResult cut = await d.CutAsync("all", ["old", "other"], default);
        Assert.Equal(["hold old other", "cut", "cut", "release"], world.Gates);
        Assert.Single(cut.Snapshots.Select(s => s.Record!.Group).Distinct());
        Assert.NotNull(cut.Snapshots[0].Record!.Group);
        world.IsSlow = true;
        Assert.Equal("cut-too-slow", (await d.CutAsync("late", ["old", "other"], default)).Fault!.Code);
        Assert.DoesNotContain(world.Snapshots.Values.SelectMany(s => s), s => s.Name == "late");
        Assert.Empty(await world.Meta.RangeAsync("cut/"));
    }

    [Fact]
    public async Task A_cut_lists_no_snapshots()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        int listings = world.Listings;
        SnapshotResult cut = await d.CutAsync("one", ["old", "beside"], default);
        Assert.Equal(["one", "one"], cut.Snapshots.Select(s => s.Info.Name));
        Assert.Equal("snapshot-exists", (await d.CutAsync("one", ["old"], default)).Fault!.Code);
        Assert.Equal(listings, world.Listings); // clients wait while a store's loop lists ten thousand
    }

    [Fact]
    public async Task Volumes_that_go_back_together_are_held_and_keep_a_group_or_none_goes_back()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world, hasPair: true);
        string before = await DescribeAsync(d);
        world.Gates.Clear();
        world.RollbackRefused = d.Find("other")!.Id;
        Assert.Equal("no-space", (await d.RollBackTogetherAsync("pair", ["old", "other"], "safe")).Fault!.Code);
        Assert.Equal(before, await DescribeAsync(d)); // the first one came again, and has nothing of it left
        Assert.Empty(await world.Meta.RangeAsync("back/"));
        world.RollbackRefused = null;
        Assert.Equal("no-such-snapshot", (await d.RollBackTogetherAsync("small", ["old", "other"], "safe")).Fault!.Code);
        Assert.Equal("invalid-volumes", (await d.RollBackTogetherAsync("pair", ["old", "old"], "safe")).Fault!.Code);
        Assert.Equal("snapshot-exists", (await d.RollBackTogetherAsync("pair", ["old", "other"], "small")).Fault!.Code);
        Assert.Equal(before, await DescribeAsync(d));
        Assert.Equal("no-group", (await d.MembersOfGroupAsync("old", "small")).Fault!.Code);
        Assert.Equal(["old", "other"], (await d.MembersOfGroupAsync("other", "pair")).Volumes);
        world.Gates.Clear();
        SnapshotResult back = await d.RollBackTogetherAsync("pair", ["old", "other"], null);
        Assert.Null(back.Fault);
        Assert.Equal(("hold old other", "release"), (world.Gates[0], world.Gates[^1]));
        Assert.Equal(3 * Units.MiB, d.Find("old")!.SizeBytes);
        Assert.Single(back.Snapshots.Select(s => (s.Record!.Group, s.Info.Name)).Distinct());
        Assert.NotNull(back.Snapshots[0].Record!.Group);
        world.IsSlow = true;
        back = await d.RollBackTogetherAsync("pair", ["old", "other"], "late");
        Assert.All(back.Snapshots, s => Assert.Null(s.Record!.Group)); // changes went on in between: each by itself
    }

    [Fact]
    public async Task A_half_cut_is_shown_to_nobody_until_its_disk_is_back_and_it_is_gone()
    {
        DirectoryWorld world;
        for (int at = 0; ; at++)
        {
            world = new DirectoryWorld();
            using VolumeDirectory dying = await StartedAsync(world);
            world.Arm(at, Mishap.DeathBefore);
            await Assert.ThrowsAsync<DeathException>(() => dying.CutAsync("half", ["old", "other"], default));
            if (world.Snapshots.Values.SelectMany(s => s).Any(s => s.Name == "half")) break;
        }

        world.Disarm();
        using VolumeDirectory again = world.Begin();
        await again.ReconcileAsync(world.Hosts()[1..]); // the disk with the snapshot is away
        Assert.NotEmpty(await world.Meta.RangeAsync("cut/"));
        await again.ReconcileAsync(world.Hosts()[..1]);
        Assert.Empty(await world.Meta.RangeAsync("cut/"));
        Assert.DoesNotContain(world.Snapshots.Values.SelectMany(s => s), s => s.Name == "half");
        await CheckAsync(world, again, "undone");
    }

    [Theory]
    [InlineData("{")]
    [InlineData("null")]
    [InlineData("{}")]
    [InlineData("{\"members\":null}")]
    [InlineData("{\"members\":[null]}")]
    public async Task A_damaged_record_of_a_cut_is_refused_by_its_key(string json)
    {
        var world = new DirectoryWorld();
        await world.Meta.TransactAsync([], [new MetaChange("cut/1", System.Text.Encoding.UTF8.GetBytes(json))]);
        InvalidDataException refused = await Assert.ThrowsAsync<InvalidDataException>(() => world.Begin().ReconcileAsync(world.Hosts()));
        Assert.Contains("cut/1", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task What_is_in_the_way_is_named()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        Assert.Null((await d.CloneAsync("old", new CloneVolume("twin", "small"))).Fault);
        DirectoryFault fault = (await d.DeleteSnapshotAsync("old", "small", null)).Fault!;
        Assert.Equal(("snapshot-has-clones", "twin is a clone of 'old@small'; flatten or delete it first"), (fault.Code, fault.Detail));
        Assert.Null((await d.CloneAsync("old", new CloneVolume("second", "small"))).Fault);
        fault = (await d.DeleteAsync("old", null, null, withSnapshots: true)).Fault!;
        Assert.Equal(("snapshot-has-clones", "twin, second are clones of 'old@small'; flatten or delete them first"), (fault.Code, fault.Detail));
        Assert.Null((await d.DeleteAsync("twin", null, null)).Fault);
        Assert.Null((await d.FlattenAsync("second")).Fault);
        fault = (await d.DeleteAsync("old", null, null)).Fault!;
        Assert.Equal("volume-has-snapshots", fault.Code);
        Assert.Contains("1 snapshots (small)", fault.Detail, StringComparison.Ordinal);
        Assert.Null((await d.DeleteAsync("old", null, null, withSnapshots: true)).Fault);
        Assert.Empty(await world.Meta.RangeAsync("snap/"));
        await CheckAsync(world, d, "deleted");
    }

    [Theory]
    [InlineData(Mishap.DeathBefore)]
    [InlineData(Mishap.DeathAfter)]
    [InlineData(Mishap.FailsUndone)]
    [InlineData(Mishap.FailsDone)]
    [InlineData(Mishap.FailsFromHereOn)]
    public async Task A_copy_is_attached_only_when_it_shares_nothing_whatever_goes_wrong(Mishap mishap)
    {
        for (int step = 0; ; step++)
        {
            var world = new DirectoryWorld();
            using VolumeDirectory directory = await StartedAsync(world);
            VolumeRecord twin = (await directory.CloneAsync("old", new CloneVolume("twin", Full: true))).Volume!;
            Assert.Equal("volume-initializing", VolumeDirectory.ImportFault(twin)!.Code);
            Assert.Equal("volume-initializing", (await directory.CloneAsync("twin", new CloneVolume("third"))).Fault!.Code);
            DirectoryFault held = (await directory.DeleteAsync("old", null, null, withSnapshots: true)).Fault!;
            Assert.Equal(("snapshot-has-clones", "twin is still being populated from 'old@copy-twin'; wait until that has ended"), (held.Code, held.Detail));
            world.Arm(step, mishap);
            try
            {
                for (int i = 0; i < 2; i++) await directory.PopulateAsync(twin.Id);
                await directory.SweepCopiesAsync();
            }
            catch (DeathException)
            {
            }

            bool isReached = world.IsReached;
            world.Disarm();
            Assert.True(directory.Find("twin")!.IsPopulating || world.Bases.Count == 0, $"{mishap} at {step}: it shares blocks and may be attached");
            using VolumeDirectory again = world.Begin();
            await again.ReconcileAsync(world.Hosts());
            Assert.True(again.Find("twin")!.IsPopulating || world.Bases.Count == 0, $"{mishap} at {step}: it shares blocks and may be attached after a start");
            for (int i = 0; i < 2; i++) Assert.Null((await again.PopulateAsync(twin.Id)).Fault);
            Assert.False(again.Find("twin")!.IsPopulating);
            Assert.Null(VolumeDirectory.ImportFault(again.Find("twin")!));
            Assert.True(await again.SweepCopiesAsync());
            Assert.Equal(["small"], world.Snapshots[1].Select(s => s.Name));
            await CheckAsync(world, again, $"{mishap} at {step}");
            if (!isReached) break;
        }
    }

    [Fact]
    public async Task What_was_cut_for_a_copy_is_in_nobodys_way()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        uint twin = (await d.CloneAsync("other", new CloneVolume("twin", Full: true))).Volume!.Id;
        Assert.Null((await d.DeleteAsync("twin", null, null)).Fault);
        world.Bases[twin] = (3, world.Snapshots[3][0].Uuid); // it still gives its pages back
        Assert.False(await d.SweepCopiesAsync());
        Assert.Equal("clone-being-deleted", (await d.DeleteAsync("other", null, null)).Fault!.Code);
        world.Bases.Clear();
        Assert.Null((await d.DeleteAsync("other", null, null)).Fault);
        Assert.Null((await d.CloneAsync("beside", new CloneVolume("second", Full: true))).Fault);
        Assert.Null((await d.DeleteAsync("second", null, null)).Fault);
        Assert.True(await d.SweepCopiesAsync());
        Assert.Empty(world.Snapshots[2]);
    }

    [Fact]
    public async Task An_image_is_never_changed_again()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        Assert.Null((await d.ChangeAsync("old", new ChangeVolume(Image: true))).Fault);
        using VolumeDirectory again = world.Begin();
        await again.ReconcileAsync(world.Hosts());
        Assert.True(again.Find("old") is { IsImage: true, Export.ReadOnly: true });
        foreach (ChangeVolume change in new[]
        {
            new ChangeVolume(SizeBytes: 6 * Units.MiB), new ChangeVolume(SizeBytes: 4 * Units.MiB, Force: true), new ChangeVolume(Image: false),
            new ChangeVolume(Export: new ExportOptions()), new ChangeVolume(Export: new ExportOptions(ReadOnly: true, Thick: true)),
        })
        {
            Assert.Equal("volume-is-image", (await again.ChangeAsync("old", change)).Fault!.Code);
        }

        Assert.Equal("volume-is-image", (await again.RollBackAsync("old", "small", null)).Fault!.Code);
        var increment = new ImportRecord(Guid.NewGuid(), Guid.NewGuid(), Units.MiB, null, "", true);
        Assert.Equal("volume-is-image", (await again.SetImportAsync(1, null, increment)).Fault!.Code);
        Assert.Null((await again.ChangeAsync("old", new ChangeVolume(Name: "gold", Export: new ExportOptions(Iscsi: false, ReadOnly: true)))).Fault);
        Assert.Equal((false, false), ((await again.CloneAsync("gold", new CloneVolume("vm", "small"))).Volume!.IsImage, again.Find("vm")!.Export.ReadOnly));
    }

    [Fact]
    public async Task A_deleted_clone_that_still_holds_its_base_is_waited_for()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        Guid small = world.Snapshots[1][0].Uuid;
        world.Bases[99] = (1, small); // a volume that clients do not see any more
        Assert.Equal("clone-being-deleted", (await d.DeleteSnapshotAsync("old", "small", null)).Fault!.Code);
        Assert.Equal("clone-being-deleted", (await d.DeleteAsync("old", null, null, withSnapshots: true)).Fault!.Code);
        world.Bases.Clear();
        Assert.Null((await d.DeleteSnapshotAsync("old", "small", null)).Fault);
    }

    [Fact]
    public async Task A_rollback_takes_the_size_from_the_store()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        Assert.Equal(5 * Units.MiB, d.Find("old")!.SizeBytes);
        VolumeSnapshot safety = (await d.RollBackAsync("old", "small", null)).Snapshots[0];
        Assert.Equal(("before-rollback-19700101-000000", 5 * Units.MiB), (safety.Info.Name, safety.Info.SizeBytes));
        Assert.Equal((3 * Units.MiB, VolumeState.Ready), (d.Find("old")!.SizeBytes, d.Find("old")!.State));
        Assert.Equal("before-rollback-19700101-000000-2", (await d.RollBackAsync("old", safety.Info.Name, null)).Snapshots[0].Info.Name);
        Assert.Equal(5 * Units.MiB, d.Find("old")!.SizeBytes);
        await CheckAsync(world, d, "rolled back");
    }

    [Fact]
    public async Task A_label_is_clean_only_while_its_record_says_so()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        Assert.Null((await d.CutAsync("rested", ["old"], new SnapshotLabel(true, "p"))).Fault);
        VolumeRecord old = d.Find("old")!;
        async Task<VolumeSnapshot> NowAsync(VolumeDirectory x) => (await x.SnapshotsAsync(old)).Snapshots.Single(s => s.Info.Name == "rested");
        Assert.Equal((true, "p"), ((await NowAsync(d)).Record!.Clean, (await NowAsync(d)).Record!.Policy));
        MetaEntry entry = (await world.Meta.RangeAsync("snap/1/")).Single(e => e.Key.EndsWith((NowAsync(d).Result.Info.Uuid).ToString("N"), StringComparison.Ordinal));
        foreach (string damaged in new[] { "{", "null", "{}", "{\"volumeId\":2,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"clean\":true,\"group\":null,\"policy\":null}" })
        {
            await world.Meta.TransactAsync([], [new MetaChange(entry.Key, System.Text.Encoding.UTF8.GetBytes(damaged))]);
            Assert.Null((await NowAsync(d)).Record);
            using VolumeDirectory again = world.Begin();
            await again.ReconcileAsync(world.Hosts());
            Assert.Null(await world.Meta.GetAsync(entry.Key));
            Assert.Null((await NowAsync(again)).Record);
        }
    }

    [Fact]
    public async Task Wrong_requests_are_refused_with_code_and_field()
    {
        using VolumeDirectory d = await StartedAsync(new DirectoryWorld());
        (string, string?) Of(DirectoryFault? fault) => (fault!.Code, fault.Field);
        Assert.Equal(("invalid-name", "name"), Of((await d.CutAsync("a@b", ["old"], default)).Fault));
        Assert.Equal(("invalid-volumes", "volumes"), Of((await d.CutAsync("a", [], default)).Fault));
        Assert.Equal(("invalid-volumes", "volumes"), Of((await d.CutAsync("a", ["old", "old"], default)).Fault));
        Assert.Equal(("no-such-volume", null), Of((await d.CutAsync("a", ["none"], default)).Fault));
        Assert.Equal(("snapshot-exists", "name"), Of((await d.CutAsync("small", ["old"], default)).Fault));
        Assert.Equal(("no-such-snapshot", null), Of((await d.DeleteSnapshotAsync("old", "none", null)).Fault));
        Assert.Equal(("uuid-differs", "uuid"), Of((await d.DeleteSnapshotAsync("old", "small", Guid.Empty)).Fault));
        Assert.Equal(("invalid-name", "safetyName"), Of((await d.RollBackAsync("old", "small", "../x")).Fault));
        Assert.Equal(("snapshot-exists", "safetyName"), Of((await d.RollBackAsync("old", "small", "small")).Fault));
        Assert.Equal(("no-such-snapshot", null), Of((await d.CloneAsync("old", new CloneVolume("x", "none"))).Fault));
        Assert.Equal(("invalid-size", "sizeBytes"), Of((await d.CloneAsync("old", new CloneVolume("x", "small", Units.MiB))).Fault));
        Assert.Equal(("name-taken", "name"), Of((await d.CloneAsync("old", new CloneVolume("beside", "small"))).Fault));
        Assert.Equal(("not-a-clone", null), Of((await d.FlattenAsync("old")).Fault));
        var request = new CloneVolume("x", "small", IdempotencyKey: "k");
        Assert.Equal((await d.CloneAsync("old", request)).Volume!.Id, (await d.CloneAsync("old", request)).Volume!.Id);
        Assert.Null((await d.CutAsync("a", ["x"], default)).Fault);
        Assert.Equal(("volume-has-snapshots", null), Of((await d.FlattenAsync("x")).Fault));
    }

    /// <summary>Volume "old" of 5 MiB with a clean snapshot "small" of 3 MiB, "beside" on the same disk, "other" on another.</summary>
    private static async Task<VolumeDirectory> StartedAsync(DirectoryWorld world, bool hasPair = false)
    {
        VolumeDirectory directory = world.Begin();
        await directory.ReconcileAsync(world.Hosts());
        Guid disk = world.Disks.Keys.First();
        Assert.Null((await directory.CreateAsync(new CreateVolume("old", 3 * Units.MiB, StoreId: disk))).Fault);
        Assert.Null((await directory.CreateAsync(new CreateVolume("beside", Units.MiB, StoreId: disk))).Fault);
        Assert.Null((await directory.CreateAsync(new CreateVolume("other", Units.MiB, StoreId: world.Disks.Keys.Last()))).Fault);
        Assert.Null((await directory.CutAsync("small", ["old"], new SnapshotLabel(true))).Fault);
        if (hasPair) Assert.Null((await directory.CutAsync("pair", ["old", "other"], default)).Fault);
        Assert.Null((await directory.ChangeAsync("old", new ChangeVolume(SizeBytes: 5 * Units.MiB))).Fault);
        return directory;
    }

    private static async Task<string> DescribeAsync(VolumeDirectory directory)
    {
        var text = new System.Text.StringBuilder();
        foreach (VolumeRecord v in directory.List())
        {
            text.Append(' ').Append(v.Name).Append(':').Append(v.SizeBytes);
            foreach (VolumeSnapshot s in (await directory.SnapshotsAsync(v)).Snapshots)
                text.Append(' ').Append(v.Name).Append('@').Append(s.Info.Name).Append(':').Append(s.Info.SizeBytes);
        }

        return text.ToString();
    }

    private static async Task CheckAsync(DirectoryWorld world, VolumeDirectory directory, string because)
    {
        VolumeRecord[] volumes = [.. directory.List().OrderBy(v => v.Id)];
        VolumeHead[] heads = [.. world.Disks.Values.SelectMany(d => d.Values).OrderBy(h => h.Id)];
        Assert.True(volumes.Select(v => new VolumeHead(v.Id, v.Uuid, v.Name, v.SizeBytes, 1)).SequenceEqual(heads), because);
        Assert.All(volumes, v => Assert.Equal(VolumeState.Ready, v.State));
        foreach (VolumeRecord volume in volumes)
            Assert.True(volume.Revision == (await world.Meta.GetAsync($"vol/{volume.Id}"))!.ModRevision, because);
        foreach (MetaEntry entry in await world.Meta.RangeAsync("snap/"))
        {
            SnapshotInfo[] known = [.. world.Snapshots.Values.SelectMany(s => s)];
            // A record of what is gone may be there until the next start; what it says must never hold for another snapshot.
            Assert.True(known.Count(s => entry.Key.EndsWith(s.Uuid.ToString("N"), StringComparison.Ordinal)) <= 1, because);
        }

        foreach (VolumeRecord volume in volumes)
        {
            foreach (VolumeSnapshot s in (await directory.SnapshotsAsync(volume)).Snapshots)
                Assert.True(s.Record is not { Clean: true } || s.Info.Name is "small" or "new", $"{because}: {s.Info.Name} is said to be clean");
        }
    }
}
