using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>Whatever fails at whatever step: afterwards metadata and stores agree, and an answer was true.</summary>
public sealed class VolumeDirectoryTests
{
    private static readonly Guid FirstDisk = new(1, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0]);

    private static readonly Dictionary<string, Func<VolumeDirectory, Task<DirectoryResult>>> Operations = new()
    {
        ["create"] = d => d.CreateAsync(new CreateVolume("new", 5 * Units.MiB)),
        ["rename"] = d => d.ChangeAsync("old", new ChangeVolume(Name: "renamed")),
        ["grow"] = d => d.ChangeAsync("old", new ChangeVolume(SizeBytes: 9 * Units.MiB)),
        ["shrink and rename"] = d => d.ChangeAsync("old", new ChangeVolume(Name: "renamed", SizeBytes: Units.MiB, Force: true)),
        ["export"] = d => d.ChangeAsync("old", new ChangeVolume(Export: new ExportOptions(ReadOnly: true))),
        ["promise"] = d => d.ChangeAsync("other", new ChangeVolume(Thin: false, SizeBytes: 3 * Units.MiB)),
        ["take a promise back"] = d => d.ChangeAsync("old", new ChangeVolume(Thin: true)),
        ["delete"] = d => d.DeleteAsync("old", null, null),
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
    public async Task A_mishap_at_any_step_leaves_the_old_or_the_new_and_no_orphan(string operation, Mishap mishap)
    {
        string wanted = await OutcomeAsync(operation);
        for (int step = 0; ; step++)
        {
            var world = new DirectoryWorld();
            using VolumeDirectory directory = await StartedAsync(world);
            string before = Describe(directory);
            world.Arm(step, mishap);
            DirectoryResult? answer = null;
            try
            {
                answer = await Operations[operation](directory);
            }
            catch (DeathException)
            {
            }

            bool isReached = world.IsReached;
            world.Disarm();
            string because = $"{operation}, {mishap} at step {step}, answered {answer?.Fault?.Code ?? "ok"}";
            if (answer is not null)
            {
                // The same process goes on: the next change settles what is left.
                Assert.Null((await directory.CreateAsync(new CreateVolume("later", Units.MiB))).Fault);
                Assert.Null((await directory.DeleteAsync("later", null, null)).Fault);
                await CheckAsync(world, directory, because);
            }

            using VolumeDirectory again = world.Begin();
            await again.ReconcileAsync(world.Hosts());
            await CheckAsync(world, again, because);
            string after = Describe(again);
            Assert.True(after == before || after == wanted, $"{because}: {after}");
            if (answer is { Fault: null }) Assert.True(after == wanted, $"{because}: acknowledged, and is {after}");
            if (answer is { } a) Assert.True(Describe(directory) == after, $"{because}: before the restart {Describe(directory)}, after it {after}, {a}");
            if (!isReached) break;
        }
    }

    [Theory]
    [InlineData(Mishap.DeathBefore)]
    [InlineData(Mishap.DeathAfter)]
    public async Task A_death_during_the_start_is_made_good_by_the_next_start(Mishap mishap)
    {
        foreach (string operation in Operations.Keys)
        {
            for (int step = 0; step < 6; step++)
            {
                for (int second = 0; ; second++)
                {
                    var world = new DirectoryWorld();
                    using VolumeDirectory directory = await StartedAsync(world);
                    world.Arm(step, Mishap.DeathAfter);
                    try
                    {
                        await Operations[operation](directory);
                    }
                    catch (DeathException)
                    {
                    }

                    world.Arm(second, mishap);
                    using VolumeDirectory dying = world.Begin();
                    try
                    {
                        await dying.ReconcileAsync(world.Hosts());
                    }
                    catch (DeathException)
                    {
                    }

                    bool isReached = world.IsReached;
                    world.Disarm();
                    using VolumeDirectory again = world.Begin();
                    await again.ReconcileAsync(world.Hosts());
                    await CheckAsync(world, again, $"{operation} died at {step}, start {mishap} at {second}");
                    if (!isReached) break;
                }
            }
        }
    }

    [Fact]
    public async Task A_lost_database_is_rebuilt_from_the_disks()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory directory = await StartedAsync(world);
        string before = Describe(directory);
        foreach (MetaEntry entry in await world.Meta.RangeAsync("")) await world.Meta.TransactAsync([], [new MetaChange(entry.Key, null)]);
        using VolumeDirectory again = world.Begin();
        IReadOnlyList<string> notes = await again.ReconcileAsync(world.Hosts());
        Assert.Equal(2, notes.Count);
        Assert.Equal(before, Describe(again));
        await CheckAsync(world, again, "adopted");
        VolumeRecord next = (await again.CreateAsync(new CreateVolume("next", Units.MiB))).Volume!;
        Assert.Equal(3u, next.Id); // numbers are never used again
    }

    [Theory]
    [InlineData(false, 4096, new[] { "one", "two" })]
    [InlineData(false, 5, new[] { "one" })] // no room for both
    [InlineData(false, 1, new string[0])]
    [InlineData(true, 4096, new string[0])]
    public async Task Volumes_of_a_lost_database_are_promised_their_size_again_where_there_is_room(bool isThinByDefault, int roomMiB, string[] promised)
    {
        var world = new DirectoryWorld();
        Guid store = world.Disks.Keys.First();
        using VolumeDirectory directory = world.Begin();
        await directory.ReconcileAsync(world.Hosts());
        foreach (string name in new[] { "one", "two" })
            Assert.Null((await directory.CreateAsync(new CreateVolume(name, 4 * Units.MiB, StoreId: store))).Fault);
        Assert.Null((await directory.CreateAsync(new CreateVolume("log", Units.MiB, StoreId: store, AppendOnly: true))).Fault);
        foreach (MetaEntry entry in await world.Meta.RangeAsync("")) await world.Meta.TransactAsync([], [new MetaChange(entry.Key, null)]);

        world.PromisableBytes = (ulong)roomMiB * Units.MiB;
        using VolumeDirectory again = world.Begin();
        again.IsThinByDefault = isThinByDefault;
        var adopted = new List<VolumeRecord>();
        again.Adopted = adopted.AddRange;
        await again.ReconcileAsync(world.Hosts());
        Assert.Equal(["log", "one", "two"], adopted.Select(v => v.Name).Order());
        Assert.Equal(promised, adopted.Where(v => v.PromisedBytes != 0).Select(v => v.Name).Order());
        Assert.Equal(promised, again.List().Where(v => v.PromisedBytes != 0).Select(v => v.Name).Order());
        Assert.Equal((ulong)promised.Length * 4 * Units.MiB, world.Promises.Values.Aggregate(0UL, (sum, b) => sum + b));

        // And at the next start they are known, whatever room there is.
        world.PromisableBytes = 0;
        adopted.Clear();
        using VolumeDirectory third = world.Begin();
        third.Adopted = adopted.AddRange;
        await third.ReconcileAsync(world.Hosts());
        Assert.Empty(adopted);
        Assert.Equal((ulong)promised.Length * 4 * Units.MiB, world.Promises.Values.Aggregate(0UL, (sum, b) => sum + b));
    }

    [Fact]
    public async Task A_disk_that_comes_back_alone_brings_back_its_own_volumes_only()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory directory = await StartedAsync(world);
        string before = Describe(directory);
        IVolumeHost[] hosts = world.Hosts();
        using VolumeDirectory again = world.Begin();
        Assert.Empty(await again.ReconcileAsync(hosts[..1]));
        Assert.Equal(before, Describe(again)); // those of the absent disk are known
        Assert.Equal("disk-unavailable", (await again.ChangeAsync("other", new ChangeVolume(SizeBytes: Units.GiB))).Fault!.Code);
        Assert.Empty(await again.ReconcileAsync(hosts[1..]));
        Assert.Null((await again.ChangeAsync("other", new ChangeVolume(SizeBytes: Units.GiB))).Fault);
        await CheckAsync(world, again, "both back");
    }

    [Fact]
    public async Task Repeating_a_creation_with_its_key_answers_the_same_volume()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory directory = await StartedAsync(world);
        var request = new CreateVolume("new", Units.MiB, IdempotencyKey: "k");
        uint id = (await directory.CreateAsync(request)).Volume!.Id;
        Assert.Equal(id, (await directory.CreateAsync(request)).Volume!.Id);
        Assert.Equal("name-taken", (await directory.CreateAsync(request with { IdempotencyKey = "other" })).Fault!.Code);
        Assert.Equal("name-taken", (await directory.CreateAsync(request with { SizeBytes = 2 * Units.MiB })).Fault!.Code);
    }

    [Fact]
    public async Task Wrong_changes_are_refused_with_code_and_field()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory d = await StartedAsync(world);
        (string, string?) Of(DirectoryResult result) => (result.Fault!.Code, result.Fault.Field);
        Assert.Equal(("invalid-name", "name"), Of(await d.CreateAsync(new CreateVolume("../x", Units.MiB))));
        Assert.Equal(("invalid-size", "sizeBytes"), Of(await d.CreateAsync(new CreateVolume("x", 1000))));
        Assert.Equal(("invalid-size", "sizeBytes"), Of(await d.CreateAsync(new CreateVolume("x", Units.MiB + 1))));
        Assert.Equal(("invalid-size", "sizeBytes"), Of(await d.CreateAsync(new CreateVolume("x", 64 * Units.TiB + 512))));
        Assert.Equal(("invalid-rep-count", "repCount"), Of(await d.CreateAsync(new CreateVolume("x", Units.MiB, 2))));
        Assert.Equal(("invalid-idempotency-key", "idempotencyKey"), Of(await d.CreateAsync(new CreateVolume("x", Units.MiB, IdempotencyKey: new string('k', 129)))));
        Assert.Equal(("invalid-description", "description"), Of(await d.CreateAsync(new CreateVolume("x", Units.MiB, Description: new string('d', 1025)))));
        Assert.Equal(("no-disk", "storeId"), Of(await d.CreateAsync(new CreateVolume("x", Units.MiB, StoreId: Guid.Empty))));
        Assert.Equal(("name-taken", "name"), Of(await d.ChangeAsync("old", new ChangeVolume(Name: "other"))));
        Assert.Equal(("revision-differs", "revision"), Of(await d.ChangeAsync("old", new ChangeVolume(Revision: 1))));
        Assert.Equal(("shrink-not-confirmed", "force"), Of(await d.ChangeAsync("old", new ChangeVolume(SizeBytes: Units.MiB))));
        Assert.Equal(("no-such-volume", null), Of(await d.ChangeAsync("none", new ChangeVolume())));
        Assert.Equal(("id-differs", null), Of(await d.DeleteAsync("old", 99, null)));
        Assert.Equal(("revision-differs", "revision"), Of(await d.DeleteAsync("old", 1, 1)));
        await CheckAsync(world, d, "refused");
    }

    [Fact]
    public async Task A_size_is_a_multiple_of_the_logical_block()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory directory = await StartedAsync(world);
        var large = new ExportOptions(BlockBytes: 4096);
        async Task<string?> CodeAsync(Task<DirectoryResult> result) => (await result).Fault?.Code;
        Assert.Equal("invalid-size", await CodeAsync(directory.CreateAsync(new CreateVolume("odd", Units.MiB + 512, Export: large))));
        Assert.Equal("invalid-block-size", await CodeAsync(directory.CreateAsync(new CreateVolume("odd", Units.MiB, Export: new ExportOptions(BlockBytes: 1024)))));
        Assert.Null(await CodeAsync(directory.CreateAsync(new CreateVolume("odd", Units.MiB + 512))));
        Assert.Equal("invalid-size", await CodeAsync(directory.ChangeAsync("odd", new ChangeVolume(Export: large))));
        Assert.Equal("invalid-block-size", await CodeAsync(directory.ChangeAsync("odd", new ChangeVolume(Export: new ExportOptions(BlockBytes: 0)))));
        Assert.Null(await CodeAsync(directory.ChangeAsync("odd", new ChangeVolume(SizeBytes: 2 * Units.MiB, Export: large))));
        Assert.Equal("invalid-size", await CodeAsync(directory.ChangeAsync("odd", new ChangeVolume(SizeBytes: 2 * Units.MiB + 512))));
        Assert.Equal(large, directory.Find("odd")!.Export);
    }

    [Fact]
    public async Task A_change_costs_the_same_among_ten_and_among_two_thousand_volumes()
    {
        var world = new DirectoryWorld();
        using VolumeDirectory directory = await StartedAsync(world);
        async Task<(int Steps, int Ranges)> CostAsync(int number)
        {
            (int steps, int ranges) = (world.Steps, world.Ranges);
            Assert.Null((await directory.CreateAsync(new CreateVolume($"v{number}", Units.MiB))).Fault);
            Assert.Null((await directory.ChangeAsync($"v{number}", new ChangeVolume(Name: $"w{number}"))).Fault);
            return (world.Steps - steps, world.Ranges - ranges);
        }

        (int, int) first = await CostAsync(0);
        for (int i = 1; i < 2000; i++) Assert.Equal(first, await CostAsync(i));
        Assert.Equal(0, first.Item2); // never all records again
        Assert.Same(directory.List(), directory.List());
        Assert.Equal(2002, directory.List().Count);
        await CheckAsync(world, directory, "many");
    }

    private static async Task<VolumeDirectory> StartedAsync(DirectoryWorld world)
    {
        VolumeDirectory directory = world.Begin();
        await directory.ReconcileAsync(world.Hosts());
        Assert.Null((await directory.CreateAsync(new CreateVolume("old", 3 * Units.MiB, StoreId: FirstDisk))).Fault);
        Assert.Null((await directory.CreateAsync(new CreateVolume("other", Units.MiB, StoreId: world.Disks.Keys.Last()))).Fault);
        return directory;
    }

    private static async Task<string> OutcomeAsync(string operation)
    {
        var world = new DirectoryWorld();
        using VolumeDirectory directory = await StartedAsync(world);
        Assert.Null((await Operations[operation](directory)).Fault);
        return Describe(directory);
    }

    private static string Describe(VolumeDirectory directory) =>
        string.Join(' ', directory.List().Select(v => $"{v.Id}:{v.Name}:{v.SizeBytes}:{v.Export.ReadOnly}"));

    /// <summary>Every volume has its record, its name and its head, and nothing else has any.</summary>
    private static async Task CheckAsync(DirectoryWorld world, VolumeDirectory directory, string because)
    {
        VolumeRecord[] volumes = [.. directory.List().OrderBy(v => v.Id)];
        VolumeHead[] heads = [.. world.Disks.Values.SelectMany(d => d.Values).OrderBy(h => h.Id)];
        Assert.True(
            volumes.Select(v => new VolumeHead(v.Id, v.Uuid, v.Name, v.SizeBytes, 1)).SequenceEqual(heads),
            $"{because}: volumes {Describe(directory)}, heads {string.Join(' ', heads.Select(h => $"{h.Id}:{h.Name}:{h.SizeBytes}"))}");
        foreach (VolumeRecord volume in volumes) Assert.True(world.Disks[volume.StoreId].ContainsKey(volume.Id), because);
        string[] records = [.. (await world.Meta.RangeAsync("vol/")).Select(e => e.Key)];
        Assert.Equal(volumes.Select(v => $"vol/{v.Id}").Order(StringComparer.Ordinal), records);
        foreach (VolumeRecord volume in volumes)
            Assert.Equal(volume.Revision, (await world.Meta.GetAsync($"vol/{volume.Id}"))!.ModRevision);
        string[] names = [.. (await world.Meta.RangeAsync("name/")).Select(e => $"{e.Key}={JsonSerializer.Deserialize<uint>(e.Value.Span)}")];
        Assert.Equal(volumes.OrderBy(v => v.Name, StringComparer.Ordinal).Select(v => $"name/{v.Name}={v.Id}"), names);
        // What a record promises its store keeps, no less and no more.
        foreach (VolumeRecord volume in volumes)
            Assert.True(world.Promises.GetValueOrDefault(volume.Id) == volume.PromisedBytes, $"{because}: '{volume.Name}' is promised {volume.PromisedBytes}, kept are {world.Promises.GetValueOrDefault(volume.Id)}");
    }
}
