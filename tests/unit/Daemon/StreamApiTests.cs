using System.Net;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Streams;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Volumes leave and come back over the API; what is refused changes nothing.</summary>
public sealed class StreamApiTests
{
    private const ulong Size = 4 * Units.MiB;

    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    private static async Task<StreamWorld> FilledAsync(params string[] arguments)
    {
        StreamWorld world = await StreamWorld.StartAsync(arguments);
        await world.CreateAsync("vm1", Size);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(1, 2 << 20));
        await world.CutAsync("vm1", 1);
        return world;
    }

    /// <summary>Where each frame of a stream begins, and its end.</summary>
    private static List<int> BordersOf(byte[] stream)
    {
        var borders = new List<int> { StreamHeader.Size };
        while (borders[^1] < stream.Length) borders.Add(borders[^1] + 64 + BitConverter.ToInt32(stream, borders[^1] + 32));
        return borders;
    }

    [Fact]
    public async Task Everything_and_increments_come_back_byte_for_byte()
    {
        await using StreamWorld world = await FilledAsync();
        var random = new SeededRandom(4);
        Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", 1, more: "compress=lz4")));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
        for (int n = 2; n < 7; n++)
        {
            for (int i = 0; i < 10; i++)
                await world.WriteAsync("vm1", (ulong)random.NextBelow(1000) * 4096, StreamWorld.Pattern(random.NextUInt64(), 1 + random.NextBelow(20_000)));
            await world.TrimAsync("vm1", (ulong)random.NextBelow(500) * 4096, 200_000);
            await world.CutAsync("vm1", n);
            byte[] expected = await world.ReadAsync("vm1");
            Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", n, n - 1, n % 2 == 0 ? "&compress=lz4" : "")));
            Assert.Equal(expected, await world.ReadAsync("back"));
        }

        Assert.Equal(["s1", "s2", "s3", "s4", "s5", "s6"], (await world.SnapshotsAsync("back")).Select(s => s.Name));
        Assert.Null(world.Volume("back").Import);
    }

    [Fact]
    public async Task A_volume_that_changed_its_size_is_followed()
    {
        await using StreamWorld world = await FilledAsync();
        Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", 1)));
        int n = 1;
        foreach (ulong size in new[] { Size + Units.MiB, 3 * Units.MiB + 1024 })
        {
            if (size < Size) await world.TrimAsync("vm1", size & ~4095UL, world.Volume("vm1").SizeBytes - (size & ~4095UL));
            DirectoryResult resized = await world.Daemon.Directory.ChangeAsync("vm1", new ChangeVolume(SizeBytes: size, Force: true));
            Assert.True(resized.Fault is null, resized.Fault?.Detail);
            await world.WriteAsync("vm1", size - 512, StreamWorld.Pattern((ulong)n, 512));
            await world.CutAsync("vm1", ++n);
            Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", n, n - 1)));
            Assert.Equal(size, world.Volume("back").SizeBytes);
            Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
        }
    }

    [Fact]
    public async Task A_damaged_stream_leaves_nothing_wherever_it_is_damaged()
    {
        await using StreamWorld world = await FilledAsync();
        byte[] full = await world.ExportAsync("vm1", 1);
        Assert.Null(await world.ImportAsync("back", full));
        byte[] before = await world.ReadAsync("back");
        await world.WriteAsync("vm1", 5000, StreamWorld.Pattern(2, 100_000));
        await world.TrimAsync("vm1", 1 << 20, 1 << 19);
        await world.CutAsync("vm1", 2);
        byte[] increment = await world.ExportAsync("vm1", 2, 1);
        ulong used = await world.UsedAsync();
        foreach ((string name, byte[] stream) in new[] { ("fresh", full), ("back", increment) })
        {
            List<int> borders = BordersOf(stream);
            foreach (int at in borders[..^1].SelectMany(b => new[] { b + 5, b + 17, b + 45, b + 70 }).Append(30))
            {
                byte[] bad = [.. stream];
                bad[Math.Min(at, bad.Length - 1)] ^= 0x10;
                Assert.Equal("bad-stream", await world.ImportAsync(name, bad, "keep=true"));
            }

            foreach (int end in borders[..^1].Append(0).Append(stream.Length - 1))
            {
                string? code = await world.ImportAsync(name, stream[..end]);
                Assert.Equal(end < StreamHeader.Size ? "bad-stream" : "truncated-stream", code);
            }

            Assert.Equal("bad-stream", await world.ImportAsync(name, [.. stream, 0]));
        }

        Assert.Null(world.Daemon.Directory.Find("fresh"));
        Assert.Null(world.Volume("back").Import);
        Assert.Equal(before, await world.ReadAsync("back"));
        Assert.Equal(["s1"], (await world.SnapshotsAsync("back")).Select(s => s.Name));
        Assert.Equal(used, await world.UsedAsync());
        Assert.Null(await world.ImportAsync("back", increment));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
    }

    [Fact]
    public async Task An_increment_needs_its_base_untouched_and_unattended()
    {
        await using StreamWorld world = await FilledAsync();
        byte[] full = await world.ExportAsync("vm1", 1);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(2, 9000));
        await world.CutAsync("vm1", 2);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(3, 9000));
        await world.CutAsync("vm1", 3);
        byte[] second = await world.ExportAsync("vm1", 2, 1), third = await world.ExportAsync("vm1", 3, 2);
        Assert.Equal("wrong-base", await world.ImportAsync("back", second));
        Assert.Null(await world.ImportAsync("back", full));
        Assert.Equal("name-taken", await world.ImportAsync("back", full));
        Assert.Equal("wrong-base", await world.ImportAsync("back", third));
        await world.CreateAsync("other", Size);
        Assert.Equal("wrong-base", await world.ImportAsync("other", second));
        byte[] clean = await world.ReadAsync("back");
        await world.WriteAsync("back", 77, [1]);
        Assert.Equal("changed-since-base", await world.ImportAsync("back", second));
        Assert.Equal(1, (await world.ReadAsync("back"))[77]);
        StoreHost host = world.Host("back");
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.RollBackAsync(StreamWorld.Id(1), new SnapshotRequest(world.Volume("back").Id, StreamWorld.Id(90), "mine", 1))));
        Assert.Equal("wrong-base", await world.ImportAsync("back", second)); // a newer snapshot is in the way
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.DeleteSnapshotAsync(world.Volume("back").Id, StreamWorld.Id(90))));
        Assert.Equal(clean, await world.ReadAsync("back"));
        Assert.Null(await world.ImportAsync("back", second));
        Assert.Null(await world.ImportAsync("back", third));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
        Assert.Equal("bad-stream", await world.ImportAsync("foreign", new byte[100_000]));
        using (HttpResponseMessage answer = await world.SendAsync(HttpMethod.Get, "volumes/vm1/snapshots/s1/stream?base=s2", null))
            Assert.Equal("wrong-base", await StreamWorld.CodeAsync(answer));
        using (HttpResponseMessage answer = await world.SendAsync(HttpMethod.Get, "volumes/vm1/snapshots/none/stream", null))
            Assert.Equal("no-such-snapshot", await StreamWorld.CodeAsync(answer));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task An_import_that_broke_off_goes_on(bool restarts)
    {
        await using StreamWorld world = await FilledAsync();
        byte[] full = await world.ExportAsync("vm1", 1);
        int middle = BordersOf(full)[1] + 1000;
        Assert.Equal("truncated-stream", await world.ImportAsync("back", full[..middle], "keep=true"));
        Assert.True(world.Volume("back").Import!.IsActive);
        using (HttpResponseMessage refused = await world.SendAsync(HttpMethod.Get, "volumes/back/snapshots/s1/stream", null))
            Assert.Equal("volume-initializing", await StreamWorld.CodeAsync(refused));
        if (restarts) await world.RestartAsync();
        Assert.Equal("import-unfinished", await world.ImportAsync("back", full));
        await ResumeAsync(world, full);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));

        byte[] before = await world.ReadAsync("back");
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(8, 3 << 20));
        await world.CutAsync("vm1", 2);
        byte[] increment = await world.ExportAsync("vm1", 2, 1);
        List<int> borders = BordersOf(increment);
        for (int i = 1; i < 3; i++)
        {
            string query = i == 1 ? "keep=true" : "keep=true&resume=true";
            byte[] part = i == 1 ? increment[..(borders[1] + 10)] : [.. increment[..512], .. increment[borders[1]..(borders[2] + 99)]];
            Assert.Equal("truncated-stream", await world.ImportAsync("back", part, query));
            if (restarts) await world.RestartAsync();
            Assert.False(world.Volume("back").Import!.IsActive);
            Assert.Equal(before, await world.ReadAsync("back")); // as if nothing had come
            Assert.Equal((ulong)borders[i], StreamCursor.TryParse(world.Volume("back").Import!.Cursor)!.PositionBytes);
            Assert.Single(await world.SnapshotsAsync("back"), s => s.Name.StartsWith("import-", StringComparison.Ordinal));
        }

        await ResumeAsync(world, increment);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
        Assert.Equal(["s1", "s2"], (await world.SnapshotsAsync("back")).Select(s => s.Name));
    }

    /// <summary>The process ended when the volume had gone back to the base, and nothing of that was written down: the next start finishes it,
    /// and keeps what had come, not the base.</summary>
    [Fact]
    public async Task What_has_come_of_a_larger_volume_outlives_a_putting_aside_that_was_cut_off()
    {
        await using StreamWorld world = await FilledAsync();
        Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", 1)));
        byte[] before = await world.ReadAsync("back");
        Assert.Null((await world.Daemon.Directory.ChangeAsync("vm1", new ChangeVolume(SizeBytes: 2 * Size))).Fault);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(8, 3 << 20));
        await world.WriteAsync("vm1", Size + Units.MiB, StreamWorld.Pattern(9, 1 << 20));
        await world.CutAsync("vm1", 2);
        byte[] increment = await world.ExportAsync("vm1", 2, 1);
        Assert.Equal("truncated-stream", await world.ImportAsync("back", increment[..(BordersOf(increment)[1] + 10)], "keep=true"));
        Guid part = (await world.SnapshotsAsync("back"))[^1].Uuid;
        for (int i = 0; i < 2; i++)
        {
            VolumeRecord volume = world.Volume("back");
            Assert.Null((await world.Daemon.Directory.SetImportAsync(volume.Id, volume.Import, volume.Import! with { IsActive = true })).Fault);
            Assert.Null((await world.Daemon.Directory.ResizeForImportAsync(volume.Id, 2 * Size)).Fault);
            await world.RestartAsync();
            Assert.False(world.Volume("back").Import!.IsActive);
            Assert.Equal(before, await world.ReadAsync("back"));
            Assert.Equal(part, (await world.SnapshotsAsync("back"))[^1].Uuid);
        }

        await ResumeAsync(world, increment);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
    }

    [Fact]
    public async Task A_connection_that_breaks_leaves_nothing_or_what_can_go_on()
    {
        await using StreamWorld world = await FilledAsync();
        byte[] full = await world.ExportAsync("vm1", 1);
        ulong used = await world.UsedAsync();
        await world.BreakAsync("back", full[..(BordersOf(full)[1] + 500)], "");
        Assert.Null(world.Daemon.Directory.Find("back"));
        Assert.Equal(used, await world.UsedAsync());
        await world.BreakAsync("back", full[..(BordersOf(full)[1] + 500)], "keep=true");
        int at = (int)StreamCursor.TryParse(world.Volume("back").Import!.Cursor)!.PositionBytes;
        Assert.Null(await world.ImportAsync("back", [.. full[..StreamHeader.Size], .. full[at..]], "resume=true"));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
    }

    /// <summary>A copy of a snapshot that somebody cut: that one stays when the copy has ended, so there is nothing to wait for.</summary>
    [Fact]
    public async Task An_increment_behind_a_snapshot_that_is_being_copied_and_stays_is_on_the_wrong_base()
    {
        await using StreamWorld world = await CopiedAsync();
        await world.CutAsync("back", 7);
        Assert.Null((await world.Daemon.Directory.CloneAsync("back", new CloneVolume("copy", "s7", Full: true))).Fault);
        Assert.Equal("wrong-base", await world.ImportAsync("back", await world.ExportAsync("vm1", 2, 1)));
    }

    [Fact]
    public async Task An_increment_onto_a_volume_that_is_being_copied_is_told_what_to_wait_for()
    {
        await using StreamWorld world = await CopiedAsync();
        byte[] second = await world.ExportAsync("vm1", 2, 1);
        byte[] before = await world.ReadAsync("back");
        // Nobody goes on with it, so that it is being populated for as long as is wanted.
        Assert.Null((await world.Daemon.Directory.CloneAsync("back", new CloneVolume("copy", Full: true))).Fault);
        foreach (string query in new[] { "", "check=true" })
        {
            using HttpResponseMessage answer = await world.SendAsync(HttpMethod.Post, $"volumes/back/stream?{query}", new ByteArrayContent(second));
            string said = await answer.Content.ReadAsStringAsync(TestContext.Current.CancellationToken);
            Assert.Equal(HttpStatusCode.Conflict, answer.StatusCode);
            Assert.Contains("volume-being-copied", said, StringComparison.Ordinal);
            Assert.Contains("copy", said, StringComparison.Ordinal);
        }

        Assert.Equal(before, await world.ReadAsync("back"));
        while (world.Volume("copy").IsPopulating)
        {
            Assert.Null((await world.Daemon.Directory.PopulateAsync(world.Volume("copy").Id)).Fault);
            await Task.Delay(10, TestContext.Current.CancellationToken);
        }

        while (!await world.Daemon.Directory.SweepCopiesAsync() || (await world.SnapshotsAsync("back")).Count > 1)
            await Task.Delay(10, TestContext.Current.CancellationToken);
        Assert.Null(await world.ImportAsync("back", second));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
        Assert.Equal(before, await world.ReadAsync("copy"));
    }

    /// <summary>Volume "back" holds snapshot s1 of vm1, which has an s2 too.</summary>
    private static async Task<StreamWorld> CopiedAsync()
    {
        StreamWorld world = await StreamWorld.StartAsync();
        await world.CreateAsync("vm1", Size);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(1, 9000));
        await world.CutAsync("vm1", 1);
        byte[] full = await world.ExportAsync("vm1", 1);
        await world.WriteAsync("vm1", 4096, StreamWorld.Pattern(2, 9000));
        await world.CutAsync("vm1", 2);
        Assert.Null(await world.ImportAsync("back", full));
        return world;
    }

    private static async Task ResumeAsync(StreamWorld world, byte[] stream)
    {
        byte[] other = [.. stream];
        new StreamHeader { StreamId = StreamWorld.Id(1234), SizeBytes = Size }.WriteTo(other);
        string? code = await world.ImportAsync("back", other, "resume=true");
        Assert.Contains(code, new[] { "other-stream", "import-unfinished", "name-taken" });
        int at = (int)StreamCursor.TryParse(world.Volume("back").Import!.Cursor)!.PositionBytes;
        Assert.True(at > StreamHeader.Size);
        Assert.Null(await world.ImportAsync("back", [.. stream[..StreamHeader.Size], .. stream[at..]], "resume=true"));
        Assert.Null(world.Volume("back").Import);
    }

    [Fact]
    public async Task An_import_is_given_up()
    {
        await using StreamWorld world = await FilledAsync();
        byte[] full = await world.ExportAsync("vm1", 1);
        ulong used = await world.UsedAsync();
        Assert.Equal("truncated-stream", await world.ImportAsync("back", full[..BordersOf(full)[1]], "keep=true"));
        await GiveUpAsync("back");
        Assert.Null(world.Daemon.Directory.Find("back"));
        Assert.Equal(used, await world.UsedAsync());
        Assert.Null(await world.ImportAsync("back", full));
        used = await world.UsedAsync();
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(8, 2 << 20));
        await world.CutAsync("vm1", 2);
        used += 2 << 20;
        byte[] increment = await world.ExportAsync("vm1", 2, 1);
        Assert.Equal("truncated-stream", await world.ImportAsync("back", increment[..BordersOf(increment)[1]], "keep=true"));
        await GiveUpAsync("back");
        Assert.Equal(["s1"], (await world.SnapshotsAsync("back")).Select(s => s.Name));
        Assert.Equal(used, await world.UsedAsync());

        async Task GiveUpAsync(string name)
        {
            using HttpResponseMessage answer = await world.SendAsync(HttpMethod.Delete, $"volumes/{name}/import", null);
            Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
        }
    }

    /// <summary>An initiator is not cut off for the sake of a stream that cannot come while he is there.</summary>
    [Fact]
    public async Task An_increment_waits_for_initiators_as_for_other_clients()
    {
        await using StreamWorld world = await StreamWorld.StartAsync("iscsi=127.0.0.1:0");
        await world.CreateAsync("vm1", Size);
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(1, 2 << 20));
        await world.CutAsync("vm1", 1);
        Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", 1)));
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(2, 9000));
        await world.CutAsync("vm1", 2);
        byte[] second = await world.ExportAsync("vm1", 2, 1);
        using (var initiator = new RawInitiator(world.Daemon.Catalog.Portals[0].EndPoint.Port, "iqn.2026-11.org.blockserver:back"))
        {
            initiator.TakeAttentions();
            for (int i = 0; i < 2; i++)
            {
                Assert.Equal("volume-in-use", await world.ImportAsync("back", second, i == 0 ? "" : "check=true"));
                Assert.Equal(0, initiator.Send("28000000000000000100", expected: 512).Status); // he reads on
            }

            Assert.Null(world.Volume("back").Import);
        }

        while (world.Daemon.Sessions.CountOf(world.Volume("back").Id) > 0) await Task.Delay(10, Cancel);
        Assert.Null(await world.ImportAsync("back", second));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
    }

    [Fact]
    public async Task A_full_disk_leaves_nothing_of_a_stream_that_is_not_to_be_kept()
    {
        await using StreamWorld world = await FilledAsync("store-size=80m");
        (byte[] big, _) = await CrowdAsync(world);
        ulong used = await world.UsedAsync();
        Assert.Equal("no-space", await world.ImportAsync("second", big));
        Assert.Null(world.Daemon.Directory.Find("second"));
        Assert.Equal(used, await world.UsedAsync());
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_stream_that_found_the_disk_full_goes_on_when_there_is_room_or_is_given_up(bool givesUp)
    {
        await using StreamWorld world = await FilledAsync("store-size=80m");
        (byte[] big, ulong half) = await CrowdAsync(world);
        ulong used = await world.UsedAsync();
        Assert.Equal("no-space", await world.ImportAsync("second", big, "keep=true"));
        Assert.True(world.Volume("second").Import!.IsActive); // nobody may attach it
        if (givesUp)
        {
            using HttpResponseMessage answer = await world.SendAsync(HttpMethod.Delete, "volumes/second/import", null);
            Assert.Equal(HttpStatusCode.NoContent, answer.StatusCode);
            Assert.Null(world.Daemon.Directory.Find("second"));
            Assert.Equal(used, await world.UsedAsync());
            return;
        }

        int at = (int)StreamCursor.TryParse(world.Volume("second").Import!.Cursor)!.PositionBytes;
        byte[] rest = [.. big[..StreamHeader.Size], .. big[at..]];
        Assert.Equal("no-space", await world.ImportAsync("second", rest, "keep=true&resume=true")); // still
        await world.TrimAsync("big", half, world.Volume("big").SizeBytes - half);
        await MoreRoomAsync(world, "big", (await world.ReadAsync("big"))[0]);
        at = (int)StreamCursor.TryParse(world.Volume("second").Import!.Cursor)!.PositionBytes;
        Assert.Null(await world.ImportAsync("second", [.. big[..StreamHeader.Size], .. big[at..]], "keep=true&resume=true"));
        Assert.Equal(await world.ReadAsync("big"), await world.ReadAsync("second"));
    }

    [Fact]
    public async Task An_increment_that_found_the_disk_full_leaves_its_base_and_goes_on_when_there_is_room()
    {
        await using StreamWorld world = await FilledAsync("store-size=80m");
        await world.CreateAsync("other", 64 * Units.MiB);
        Assert.Null(await world.ImportAsync("back", await world.ExportAsync("vm1", 1)));
        byte[] basis = await world.ReadAsync("back");
        await world.WriteAsync("vm1", 0, StreamWorld.Pattern(8, 3 << 20));
        await world.CutAsync("vm1", 2);
        byte[] second = await world.ExportAsync("vm1", 2, 1);
        int room = (int)(await world.Host("other").DescribeAsync()).FreeBytes & -4096;
        await world.WriteAsync("other", 0, StreamWorld.Pattern(9, room - (2 << 20)));
        foreach (string query in new[] { "", "keep=true" })
        {
            Assert.Equal("no-space", await world.ImportAsync("back", second, query));
            Assert.Equal(basis, await world.ReadAsync("back"));
            Assert.Equal(query.Length > 0, world.Volume("back").Import is { IsActive: false });
        }

        await world.TrimAsync("other", 0, 64 * Units.MiB);
        await MoreRoomAsync(world, "other", 0);
        int at = (int)StreamCursor.TryParse(world.Volume("back").Import!.Cursor)!.PositionBytes;
        Assert.Null(await world.ImportAsync("back", [.. second[..StreamHeader.Size], .. second[at..]], "resume=true"));
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
        Assert.Equal(["s1", "s2"], (await world.SnapshotsAsync("back")).Select(s => s.Name));
    }

    /// <summary>Returns when what was trimmed may be used again: a few flushes later.</summary>
    private static async Task MoreRoomAsync(StreamWorld world, string name, byte first)
    {
        StoreHost host = world.Host(name);
        for (int i = 0; await host.Thread.InvokeAsync(() => new ValueTask<ulong>(host.Store.GetStats().BlocksQuarantined)) > 16; i++)
        {
            Assert.True(i < 1000, "what was trimmed does not come back");
            await world.WriteAsync(name, 0, [first]);
            Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.FlushAsync()));
            await Task.Delay(10, Cancel);
        }
    }

    /// <summary>A volume whose stream does not fit beside it any more, until it is trimmed from the offset on.</summary>
    private static async Task<(byte[] Stream, ulong OffsetBytes)> CrowdAsync(StreamWorld world)
    {
        await world.CreateAsync("big", 16 * Units.MiB); // as large as the disk
        int room = (int)(await world.Host("big").DescribeAsync()).FreeBytes & -4096;
        await world.WriteAsync("big", 0, StreamWorld.Pattern(5, room / 5 * 2));
        await world.CutAsync("big", 1);
        byte[] big = await world.ExportAsync("big", 1);
        await world.WriteAsync("big", (ulong)(room / 2) & ~4095UL, StreamWorld.Pattern(6, room / 4));
        return (big, (ulong)(room / 2) & ~4095UL);
    }

    [Fact]
    public async Task An_export_goes_on_from_a_cursor_and_is_the_same()
    {
        await using StreamWorld world = await FilledAsync();
        byte[] full = await world.ExportAsync("vm1", 1);
        StreamHeader.TryRead(full, out StreamHeader? header);
        List<int> borders = BordersOf(full);
        var decoder = new StreamDecoder(header!);
        for (int i = 0; i + 1 < borders.Count; i++)
        {
            byte[] rest = await world.ExportAsync("vm1", 1, more: "cursor=" + decoder.Cursor);
            Assert.Equal(full[borders[i]..], rest);
            Assert.Null(decoder.ReadFrame(full.AsSpan(borders[i]), out StreamFrame frame));
            Assert.Null(decoder.Accept(frame, full.AsSpan(borders[i] + 64, frame.PayloadBytes), []));
        }

        using HttpResponseMessage answer = await world.SendAsync(HttpMethod.Get, "volumes/vm1/snapshots/s1/stream?cursor=00", null);
        Assert.Equal("invalid-cursor", await StreamWorld.CodeAsync(answer));
    }

    [Fact]
    public async Task The_guard_holds_for_streams()
    {
        await using StreamWorld world = await FilledAsync();
        using var json = new StringContent("{}");
        using HttpResponseMessage wrong = await world.SendAsync(HttpMethod.Post, "volumes/x/scrub", new ByteArrayContent([1]));
        Assert.Equal("wrong-content-type", await StreamWorld.CodeAsync(wrong));
        using var client = new HttpClient();
        using HttpResponseMessage open = await client.PostAsync(
            wrong.RequestMessage!.RequestUri!.ToString().Replace("/scrub", "/stream", StringComparison.Ordinal), json, Cancel);
        Assert.Equal(HttpStatusCode.Unauthorized, open.StatusCode);
    }
}
