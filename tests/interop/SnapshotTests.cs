using System.Diagnostics;
using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Snapshots and clones of the real daemon, by the real pfcli, judged by foreign clients.</summary>
public sealed class SnapshotTests : IDisposable
{
    private readonly Blockd _blockd = new("demo", "64m");
    private readonly Pfcli _pfcli;

    public SnapshotTests() => _pfcli = new Pfcli(_blockd);

    public void Dispose() => _blockd.Dispose();

    private string UriOf(string export) => $"nbd://127.0.0.1:{_blockd.Port}/{export}";

    [Fact]
    public void Snapshots_clones_rollback_and_deletion_hold_what_they_promise()
    {
        Io("demo", "write -P 1 0 8m", "flush");
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "one", "--clean");
        Io("demo", "write -P 2 4m 8m", "flush");
        SnapshotEntry one = Assert.Single(Snapshots());
        Assert.Equal(("clean", 8UL << 20, 4UL << 20), (one.Label, one.UsedBytes!.Value, one.ExclusiveBytes!.Value));
        Assert.Contains("1 ranges, 8 MiB changed.", _pfcli.Run("diff_snapshot", "-v", "demo", "--from", "one"), StringComparison.Ordinal);
        _pfcli.Refused("snapshot-exists", "create_snapshot", "-v", "demo", "-n", "one");

        _pfcli.Run("clone_volume", "-v", "demo", "-n", "one", "-c", "copy", "-s", "128m");
        Io("copy", "read -P 1 0 8m", "read -P 0 8m 8m", "write -P 3 0 1m", "write -P 3 100m 1m");
        Io("demo", "read -P 1 0 4m", "read -P 2 4m 8m");
        Assert.Equal("demo@one", _pfcli.Volume("copy").Base);
        _pfcli.Refused("copy is a clone of 'demo@one'", "delete_snapshot", "-v", "demo", "-n", "one", "--yes");
        _pfcli.Refused("snapshot-has-clones", "delete_volume", "-v", "demo", "--snapshots", "--yes");
        Assert.Contains("succeeded", _pfcli.Run("flatten_volume", "-v", "copy"), StringComparison.Ordinal);

        _pfcli.Refused("--yes", "rollback_snapshot", "-v", "demo", "-n", "one");
        _pfcli.Run("rollback_snapshot", "-v", "demo", "-n", "one", "--safety", "later", "--yes");
        Io("demo", "read -P 1 0 8m", "read -P 0 8m 8m");
        _pfcli.Run("rollback_snapshot", "-v", "demo", "-n", "later", "--yes");
        Io("demo", "read -P 1 0 4m", "read -P 2 4m 8m");

        _blockd.Kill();
        _blockd.Restart();
        Assert.Equal(3, Snapshots().Count);
        Assert.Equal("clean", Snapshots()[0].Label);
        Io("copy", "read -P 3 0 1m", "read -P 1 1m 7m", "read -P 3 100m 1m");
        foreach (SnapshotEntry snapshot in Snapshots())
            Assert.Contains("succeeded", _pfcli.Run("delete_snapshot", "-v", "demo", "-n", snapshot.Name, "--yes"), StringComparison.Ordinal);
        Io("demo", "read -P 1 0 4m", "read -P 2 4m 8m");
        _pfcli.Run("delete_volume", "-v", "demo", "--yes");
        Io("copy", "read -P 3 0 1m", "read -P 1 1m 7m");
        Assert.Equal(0, _blockd.Stop());
        Blockd.Run(Path.Combine(Path.GetDirectoryName(Blockd.Program)!, "pfinspect"), "verify", _blockd.Store);
    }

    [Fact]
    public void A_snapshot_is_read_over_NBD_while_its_volume_is_written()
    {
        string first = Path.Combine(_blockd.Directory, "first.img"), back = Path.Combine(_blockd.Directory, "back.img");
        var content = new byte[64 << 20];
        new Random(1).NextBytes(content);
        File.WriteAllBytes(first, content);
        Blockd.Run("nbdcopy", "--flush", first, UriOf("demo"));
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "one");
        Task load = Task.Run(() => Blockd.Run("qemu-img", "bench", "-f", "raw", "-w", "-c", "30000", "-d", "16", "-s", "4096", "-S", "69632", "--pattern=7", UriOf("demo")), TestContext.Current.CancellationToken);
        for (int i = 0; i == 0 || !load.IsCompleted; i++)
        {
            Blockd.Run("nbdcopy", "--connections=4", UriOf("demo@one"), back);
            Blockd.Run("cmp", first, back);
        }

        load.GetAwaiter().GetResult();
        Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("demo@none")).Code);
        Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("demo@")).Code);
        Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("@one")).Code);
        Assert.Equal(0, Blockd.Try("nbdinfo", "--is", "read-only", UriOf("demo@one")).Code);
        Assert.NotEqual(0, Blockd.Try("qemu-io", "-f", "raw", "-c", "write 0 4k", UriOf("demo@one")).Code);
        string list = Blockd.Run("nbdinfo", "--list", $"nbd://127.0.0.1:{_blockd.Port}");
        Assert.DoesNotContain("demo@one", list, StringComparison.Ordinal); // volumes only
        Assert.Contains("qemu:dirty-bitmap:one", list, StringComparison.Ordinal);
        _pfcli.Run("resize_volume", "-v", "demo", "-s", "128m");
        Assert.Equal("67108864", Blockd.Run("nbdinfo", "--size", UriOf("demo@one")).Trim());
        using (Process reader = Read(UriOf("demo@one")))
        {
            Assert.Equal("demo@one", Assert.Single(_pfcli.Sessions()).Volume);
            _pfcli.Refused("snapshot-in-use", "delete_snapshot", "-v", "demo", "-n", "one", "--yes");
            _pfcli.Run("rollback_snapshot", "-v", "demo", "-n", "one", "--safety", "two", "--yes"); // a reader is not in the way
            _pfcli.Run("delete_snapshot", "-v", "demo", "-n", "one", "--force", "--yes");
            for (int i = 0; i < 100 && _pfcli.Sessions().Count > 0; i++) Thread.Sleep(50);
            Assert.Empty(_pfcli.Sessions());
            reader.StandardInput.Close();
            Assert.True(reader.WaitForExit(30_000));
        }

        Blockd.Run("nbdcopy", UriOf("demo"), back);
        Blockd.Run("cmp", first, back);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Backup_tools_see_what_was_written_since_a_snapshot_and_how_deep()
    {
        Io("demo", "write -P 1 0 4m", "write -P 1 16m 1m", "flush");
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "one");
        Io("demo", "write -P 2 1m 64k", "discard 16m 64k", "write -z -u 2m 4k", "flush");
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "two");
        Io("demo", "write -P 3 32m 4k", "flush");
        const int M = 1 << 20, K = 1 << 10;
        Assert.Equal(
            [(0, M, 0), (M, 64 * K, 1), (M + 64 * K, M - 64 * K, 0), (2 * M, 4 * K, 1), (2 * M + 4 * K, 14 * M - 4 * K, 0), (16 * M, 64 * K, 1), (16 * M + 64 * K, 16 * M - 64 * K, 0), (32 * M, 4 * K, 1), (32 * M + 4 * K, 32 * M - 4 * K, 0)],
            MapOf("qemu:dirty-bitmap:one", "demo"));
        Assert.Equal([(0, 32 * M, 0), (32 * M, 4 * K, 1), (32 * M + 4 * K, 32 * M - 4 * K, 0)], MapOf("qemu:dirty-bitmap:two", "demo"));
        Assert.Equal(
            [(0, M, 0), (M, 64 * K, 1), (M + 64 * K, M - 64 * K, 0), (2 * M, 4 * K, 1), (2 * M + 4 * K, 14 * M - 4 * K, 0), (16 * M, 64 * K, 1), (16 * M + 64 * K, 48 * M - 64 * K, 0)],
            MapOf("qemu:dirty-bitmap:one", "demo@two"));
        Assert.Equal(
            [(0, M, 3), (M, 64 * K, 2), (M + 64 * K, M - 64 * K, 3), (2 * M, 4 * K, 0), (2 * M + 4 * K, 2 * M - 4 * K, 3), (4 * M, 12 * M + 64 * K, 0), (16 * M + 64 * K, M - 64 * K, 3), (17 * M, 15 * M, 0), (32 * M, 4 * K, 1), (32 * M + 4 * K, 32 * M - 4 * K, 0)],
            MapOf("qemu:allocation-depth", "demo"));
        Assert.Equal([(0, 4 * M, 1), (4 * M, 12 * M, 0), (16 * M, M, 1), (17 * M, 47 * M, 0)], MapOf("qemu:allocation-depth", "demo@one"));
        string all = Blockd.Run("nbdinfo", "--json", UriOf("demo"));
        foreach (string context in new[] { "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two" })
            Assert.Contains($"\"{context}\"", all, StringComparison.Ordinal);

        // An incremental copy by a foreign client: the full one of "one", and on top of it what qemu-img says has changed.
        string copy = Path.Combine(_blockd.Directory, "copy.img"), wanted = Path.Combine(_blockd.Directory, "wanted.img");
        Blockd.Run("nbdcopy", UriOf("demo@one"), copy);
        Blockd.Run("nbdcopy", UriOf("demo@two"), wanted);
        Assert.NotEqual(0, Blockd.Try("cmp", copy, wanted).Code);
        string options = $"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={_blockd.Port},export=demo@two";
        string map = Blockd.Run("qemu-img", "map", "--output=json", "--image-opts", options + ",x-dirty-bitmap=qemu:dirty-bitmap:one");
        int copied = 0;
        foreach (JsonElement extent in JsonDocument.Parse(map).RootElement.EnumerateArray())
        {
            if (extent.GetProperty("data").GetBoolean()) continue; // this driver says dirty by "no data"
            (long start, long length) = (extent.GetProperty("start").GetInt64(), extent.GetProperty("length").GetInt64());
            Blockd.Run(
                "qemu-img", "convert", "-n", "--image-opts", "--target-image-opts", $"driver=raw,offset={start},size={length},file.{options.Replace(",", ",file.", StringComparison.Ordinal)}",
                $"driver=raw,offset={start},size={length},file.driver=file,file.filename={copy}");
            copied += (int)length;
        }

        Assert.Equal(64 * K + 4 * K + 64 * K, copied);
        Blockd.Run("cmp", copy, wanted);
        Assert.Equal("[[0, 4096, 1]]", Blockd.Run(
            "/usr/bin/python3", "-c", """
            import nbd, sys
            h = nbd.NBD()
            h.add_meta_context("qemu:dirty-bitmap:one"); h.add_meta_context("base:allocation")
            h.connect_uri(sys.argv[1])
            assert h.can_meta_context("base:allocation") and not h.can_meta_context("qemu:allocation-depth")
            found = []
            def seen(context, offset, entries, error):
                if context == "qemu:dirty-bitmap:one": found.append([0, entries[0], entries[1]])
            h.block_status(4096, 2 << 20, seen, nbd.CMD_FLAG_REQ_ONE)
            print(found)
            """, UriOf("demo")).Trim());
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void A_snapshot_is_a_write_protected_disk_over_iSCSI()
    {
        Io("demo", "write -P 1 0 8m", "flush");
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "one");
        Io("demo", "write -P 2 0 8m", "flush");
        string head = $"iscsi://127.0.0.1:{_blockd.IscsiPort}/iqn.2026-11.org.blockserver:demo";
        string output = Blockd.Run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 8m", head + ":one/0");
        Assert.DoesNotContain("failed", output, StringComparison.Ordinal);
        Assert.NotEqual(0, Blockd.Try("qemu-io", "-f", "raw", "-c", "write 0 4k", head + ":one/0").Code);
        string[] ids = [.. new[] { "/0", ":one/0" }.Select(t => Blockd.Run("iscsi-inq", "-e", "1", "-c", "131", head + t))];
        Assert.NotEqual(ids[0], ids[1]);
        Assert.Contains("Total size:67108864", Blockd.Run("iscsi-readcapacity16", head + ":one/0"), StringComparison.Ordinal);
        Assert.NotEqual(0, Blockd.Try("iscsi-inq", head + ":none/0").Code);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Groups_over_loops_show_one_moment_of_a_counter_that_a_foreign_client_writes_across_them()
    {
        using var blockd = new Blockd("v0", "64m", "--loops", "3");
        var pfcli = new Pfcli(blockd);
        for (int i = 1; i < 3; i++)
        {
            pfcli.Run("add_disk", Path.Combine(blockd.Directory, $"disk{i}.blk"), "-s", "256m");
            pfcli.Run("create_volume", "-v", $"v{i}", "-s", "64m", "--disk", $"disk{i}");
        }

        string[] uris = [.. Enumerable.Range(0, 3).Select(i => $"nbd://127.0.0.1:{blockd.Port}/v{i}")];
        string stop = Path.Combine(blockd.Directory, "stop");
        Task<string> writer = Task.Run(() => Blockd.Run(
            "/usr/bin/python3", ["-c", """
            import nbd, os, sys
            disks = []
            for uri in sys.argv[2:]:
                disks.append(nbd.NBD()); disks[-1].connect_uri(uri)
            n = 0
            while n < 1000 or not os.path.exists(sys.argv[1]):
                n += 1
                disks[n % 3].pwrite(n.to_bytes(4096, "little"), 0)
                if n == 3: open(sys.argv[1] + ".not", "w").close()
            print(n)
            """, stop, .. uris]), TestContext.Current.CancellationToken);
        while (!File.Exists(stop + ".not") && !writer.IsCompleted) Thread.Sleep(10);
        for (int g = 0; g < 10; g++) pfcli.Run("create_snapshot", "-v", "v0", "-v", "v1", "-v", "v2", "-n", $"g{g}");
        blockd.Kill(); // the groups are durable
        File.WriteAllText(stop, "");
        Assert.ThrowsAny<Exception>(() => writer.GetAwaiter().GetResult()); // its server is gone
        blockd.Restart();
        ulong before = 0, begin = 0;
        for (int g = 0; g < 10; g++)
        {
            ulong[] seen = [.. Enumerable.Range(0, 3).Select(i => CounterOf(blockd, $"v{i}@g{g}"))];
            ulong last = seen.Max();
            Assert.True(last >= Math.Max(3, before), $"group {g} shows {last} after {before}");
            if (g == 0) begin = last;
            before = last;
            for (ulong k = 0; k < 3; k++) Assert.Equal(last - k, seen[(last - k) % 3]);
        }

        Assert.True(before > begin, $"the client wrote nothing between the first group and the last: {begin}");
        Assert.Equal(0, blockd.Stop());
    }

    private static ulong CounterOf(Blockd blockd, string export)
    {
        string image = Path.Combine(blockd.Directory, "counter.img");
        Blockd.Run("nbdcopy", $"nbd://127.0.0.1:{blockd.Port}/{export}", image);
        using FileStream file = File.OpenRead(image);
        var bytes = new byte[8];
        file.ReadExactly(bytes);
        return BitConverter.ToUInt64(bytes);
    }

    /// <summary>A client that has read something and stays.</summary>
    private static Process Read(string uri)
    {
        Process client = Process.Start(new ProcessStartInfo("qemu-io", ["-r", "-f", "raw", uri])
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        client.StandardInput.WriteLine("read 0 4k");
        client.StandardInput.Flush();
        for (string? line; (line = client.StandardOutput.ReadLine()) is not null && !line.Contains("read 4096", StringComparison.Ordinal);)
        {
        }

        return client;
    }

    private (long, long, int)[] MapOf(string context, string export) =>
    [
        .. Blockd.Run("nbdinfo", $"--map={context}", UriOf(export)).Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Select(f => (long.Parse(f[0], System.Globalization.CultureInfo.InvariantCulture), long.Parse(f[1], System.Globalization.CultureInfo.InvariantCulture), int.Parse(f[2], System.Globalization.CultureInfo.InvariantCulture))),
    ];

    private IReadOnlyList<SnapshotEntry> Snapshots() =>
        JsonSerializer.Deserialize(_pfcli.Run("--json", "list_snapshot", "-v", "demo"), ApiJson.Default.SnapshotList)!.Snapshots;

    private void Io(string export, params string[] commands)
    {
        string output = Blockd.Run("qemu-io", ["-f", "raw", .. commands.SelectMany(c => new[] { "-c", c }), UriOf(export)]);
        Assert.DoesNotContain("failed", output, StringComparison.Ordinal);
    }
}
