using System.Diagnostics;
using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>The operator's words, spoken by the real pfcli to the real daemon.</summary>
public sealed class PfcliTests : IDisposable
{
    private readonly Blockd _blockd = new("demo", "64m");
    private readonly Pfcli _pfcli;

    public PfcliTests() => _pfcli = new Pfcli(_blockd);

    public void Dispose() => _blockd.Dispose();

    private string UriOf(string volume) => $"nbd://127.0.0.1:{_blockd.Port}/{volume}";

    [Fact]
    public void A_volume_is_created_listed_shown_checked_renamed_and_deleted()
    {
        string made = _pfcli.Run("create_volume", "-v", "vol1", "-s", "128m", "--description", "mail");
        Assert.Matches(@"^Id +Name +Size +RepCount +Status\n\d+ +vol1 +128 MiB +1 +online\n$", made);
        Assert.StartsWith("2 volumes returned.\n", _pfcli.Run("list_volume"), StringComparison.Ordinal);
        Assert.Equal(["demo", "vol1"], _pfcli.Volumes().Select(v => v.Name));
        Assert.Equal((128UL << 20, 1, "online", "mail"), (_pfcli.Volume("vol1").SizeBytes, _pfcli.Volume("vol1").RepCount, _pfcli.Volume("vol1").Status, _pfcli.Volume("vol1").Description));
        Assert.Contains("mail", _pfcli.Run("show_volume", "-v", "vol1"), StringComparison.Ordinal);
        Assert.Equal(0, _pfcli.Try("check_volume_exists", "-v", "vol1").Code);
        _pfcli.Refused("does not exist", "check_volume_exists", "-v", "vol2");

        _pfcli.Refused("name-taken", "create_volume", "-v", "vol1", "-s", "1g");
        _pfcli.Refused("name-taken", "rename_volume", "-v", "vol1", "-n", "demo");
        _pfcli.Run("rename_volume", "-v", "vol1", "-n", "vol2");
        Assert.Equal(["demo", "vol2"], _pfcli.Volumes().Select(v => v.Name));
        Assert.Contains("134217728", Blockd.Run("nbdinfo", "--size", UriOf("vol2")), StringComparison.Ordinal);

        _pfcli.Refused("--yes", "delete_volume", "-v", "vol2");
        _pfcli.Run("delete_volume", "-v", "vol2", "--yes");
        _pfcli.Refused("no-such-volume", "delete_volume", "-v", "vol2", "--yes");
        Assert.Equal(["demo"], _pfcli.Volumes().Select(v => v.Name));
        Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("vol2")).Code);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Wrong_usage_exits_2_and_a_daemon_that_is_gone_1()
    {
        foreach (string[] wrong in new[] { new[] { "create_volume" }, ["create_volume", "-v", "x", "-s", "-1"], ["no_such"], ["resize_volume", "-v", "demo"] })
            Assert.Equal(2, _pfcli.Try(wrong).Code);
        _pfcli.Refused("invalid-size", "create_volume", "-v", "x", "-s", "65t");
        _pfcli.Refused("repCount", "create_volume", "-v", "x", "-s", "1g", "-r", "2");
        _pfcli.Refused("there is no node", "create_volume", "-v", "x", "-s", "1g", "--host_id", "elsewhere");
        Assert.Equal(0, _blockd.Stop());
        _pfcli.Refused("is it running?", "list_volume");
    }

    [Fact]
    public void A_volume_grows_while_attached_and_shrinks_only_when_empty_and_confirmed()
    {
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 7 40m 1m", "-c", "flush", UriOf("demo"));
        using (Process client = Attach("demo"))
        {
            _pfcli.Run("resize_volume", "-v", "demo", "-s", "256m");
            _pfcli.Refused("volume-in-use", "resize_volume", "-v", "demo", "-s", "128m", "--yes");
            _pfcli.Refused("volume-in-use", "delete_volume", "-v", "demo", "--yes");
            Detach(client);
        }

        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 8 200m 1m", "-c", "read -P 7 40m 1m", "-c", "discard 200m 1m", "-c", "flush", UriOf("demo"));
        _pfcli.Refused("--yes", "resize_volume", "-v", "demo", "-s", "128m");
        _pfcli.Refused("data-beyond-size", "resize_volume", "-v", "demo", "-s", "8m", "--yes");
        _pfcli.Run("resize_volume", "-v", "demo", "-s", "64m", "--yes");
        Assert.Equal("67108864", Blockd.Run("nbdinfo", "--size", UriOf("demo")).Trim());
        string read = Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 7 40m 1m", UriOf("demo"));
        Assert.DoesNotContain("failed", read, StringComparison.Ordinal);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Export_options_decide_who_is_served_and_how()
    {
        _pfcli.Run("export_volume", "-v", "demo", "--read-only");
        Assert.Contains("\"is_read_only\": true", Blockd.Run("nbdinfo", "--json", UriOf("demo")), StringComparison.Ordinal);
        Assert.NotEqual(0, Blockd.Try("qemu-io", "-f", "raw", "-c", "write 0 4k", UriOf("demo")).Code);
        _pfcli.Run("export_volume", "-v", "demo", "--read-only=false");
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write 0 4k", UriOf("demo"));
        _pfcli.Run("unexport_volume", "-v", "demo", "--nbd");
        Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("demo")).Code);
        Assert.DoesNotContain("demo", Blockd.Try("nbdinfo", "--list", $"nbd://127.0.0.1:{_blockd.Port}").Output, StringComparison.Ordinal);
        _pfcli.Run("export_volume", "-v", "demo");
        Blockd.Run("nbdinfo", UriOf("demo"));
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Sessions_are_listed_with_what_they_did_and_can_be_cut()
    {
        Assert.StartsWith("0 sessions returned.", _pfcli.Run("list_session"), StringComparison.Ordinal);
        using Process client = Attach("demo");
        SessionInfo session = Assert.Single(_pfcli.Sessions());
        Assert.Equal(("demo", "nbd", false), (session.Volume, session.Protocol, session.Tls));
        Assert.StartsWith("127.0.0.1:", session.Peer, StringComparison.Ordinal);
        Assert.True(session.WriteOps >= 1 && session.WriteBytes >= 4096);
        Assert.Equal(1, _pfcli.Volume("demo").Sessions);
        _pfcli.Run("drop_session", session.Id, "--yes");
        _pfcli.Refused("no-such-session", "drop_session", "none", "--yes");
        client.StandardInput.Close();
        client.WaitForExit();
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void A_scrub_is_a_task_and_tells_the_truth()
    {
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 5 0 8m", "-c", "flush", UriOf("demo"));
        Assert.Contains("2048 blocks read, all good", _pfcli.Run("scrub_volume", "-v", "demo"), StringComparison.Ordinal);
        string started = _pfcli.Run("--json", "scrub_volume", "-v", "demo", "--rate", "64k", "--no-wait");
        TaskInfo task = JsonSerializer.Deserialize(started, ApiJson.Default.TaskInfo)!;
        string id = task.Id.ToString(System.Globalization.CultureInfo.InvariantCulture);
        Assert.Contains("scrub", _pfcli.Run("list_task"), StringComparison.Ordinal);
        _pfcli.Run("cancel_task", id);
        _pfcli.Refused("cancelled", "query_task", id, "--wait");
        _pfcli.Refused("no-such-task", "query_task", "999");
        _pfcli.Refused("no-such-volume", "scrub_volume", "-v", "none");

        // A block that rots is found, and the exit code says so.
        string disk = _pfcli.Disks()[0].Path;
        Assert.Equal(0, _blockd.Stop());
        Flip(disk, FindBlock(disk, 5));
        _blockd.Restart();
        _pfcli.Refused("bad block", "scrub_volume", "-v", "demo");
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Top_shows_what_was_done()
    {
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write 0 1m", UriOf("demo"));
        using Process client = Attach("demo");
        string line = _pfcli.Run("--json", "top", "--count", "1", "--interval", "0.1");
        JsonElement volume = Assert.Single(JsonDocument.Parse(line).RootElement.GetProperty("volumes").EnumerateArray());
        Assert.Equal("demo", volume.GetProperty("volume").GetString());
        Assert.Equal(0, volume.GetProperty("errors").GetInt32());
        Assert.Contains("W p99", _pfcli.Run("top", "--count", "1", "--interval", "0.1"), StringComparison.Ordinal);
        Detach(client);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Disks_are_added_filled_by_room_removed_and_taken_back()
    {
        string two = Path.Combine(_blockd.Directory, "two.blk"), three = Path.Combine(_blockd.Directory, "three.blk");
        _pfcli.Run("add_disk", two, "-s", "1g");
        _pfcli.Run("add_disk", three, "-s", "1g", "-n", "third");
        Assert.Equal(["store-0", "third", "two"], _pfcli.Disks().Select(d => d.Name).Order(StringComparer.Ordinal));
        Assert.All(_pfcli.Disks(), d => Assert.Equal("online", d.Status));
        for (int i = 0; i < 8; i++) _pfcli.Run("create_volume", "-v", $"v{i}", "-s", "64m");
        Assert.All(_pfcli.Disks(), d => Assert.Equal(3, d.Volumes)); // eight and demo
        _pfcli.Run("create_volume", "-v", "chosen", "-s", "64m", "--disk", "third");
        Guid third = _pfcli.Disks().Single(d => d.Name == "third").Id;
        Assert.Equal(third, _pfcli.Volume("chosen").StoreId);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 9 0 1m", "-c", "flush", UriOf("chosen"));

        _pfcli.Refused("disk-in-use", "remove_disk", "third", "--yes");
        _pfcli.Run("remove_disk", "third", "--force", "--yes");
        Assert.Equal("unavailable", _pfcli.Volume("chosen").Status);
        Assert.NotEqual(0, Blockd.Try("nbdinfo", UriOf("chosen")).Code);
        Assert.Equal(0, _blockd.Stop());
        _blockd.Restart();
        Assert.Equal(2, _pfcli.Disks().Count);
        Assert.Equal("unavailable", _pfcli.Volume("chosen").Status);

        _pfcli.Run("add_disk", three);
        Assert.Equal(third, _pfcli.Disks().Single(d => d.Name == "third" || d.Path == three).Id);
        string read = Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 9 0 1m", UriOf("chosen"));
        Assert.DoesNotContain("failed", read, StringComparison.Ordinal);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void A_disk_that_is_gone_is_listed_as_missing_and_the_rest_serves()
    {
        string two = Path.Combine(_blockd.Directory, "two.blk");
        _pfcli.Run("add_disk", two, "-s", "1g");
        _pfcli.Run("create_volume", "-v", "away", "-s", "64m", "--disk", "two");
        Assert.Equal(0, _blockd.Stop());
        File.Move(two, two + ".moved");
        _blockd.Restart();
        Assert.Equal("missing", _pfcli.Disks().Single(d => d.Name == "two").Status);
        Assert.Contains("missing: ", _pfcli.Run("list_disk"), StringComparison.Ordinal);
        Assert.Equal(("unavailable", true), (_pfcli.Volume("away").Status, _pfcli.Volume("away").FailReason is { Length: > 0 }));
        Assert.Contains("Warning: disk two", _pfcli.Run("list_store"), StringComparison.Ordinal);
        Blockd.Run("nbdinfo", UriOf("demo"));
        File.Move(two + ".moved", two);
        _pfcli.Run("add_disk", two);
        Assert.Equal("online", _pfcli.Volume("away").Status);
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Foreign_data_is_kept_unless_forced()
    {
        string image = Path.Combine(_blockd.Directory, "ext4.blk");
        using (FileStream file = File.Create(image)) file.SetLength(256 << 20);
        Blockd.Run("/sbin/mkfs.ext4", "-q", image);
        _pfcli.Refused("ext4", "add_disk", image);
        Blockd.Run("/sbin/e2fsck", "-fn", image);
        _pfcli.Refused("--yes", "add_disk", image, "--force");
        Blockd.Run("/sbin/e2fsck", "-fn", image);
    }

    [Fact]
    public void A_raw_block_device_is_a_disk_like_a_file()
    {
        // Loop devices are the only raw block devices that a test machine can be asked for.
        string image = Path.Combine(_blockd.Directory, "raw.img");
        using (FileStream file = File.Create(image)) file.SetLength(256 << 20);
        (int code, string device) = Blockd.Try("/sbin/losetup", "--find", "--show", image);
        Assert.SkipWhen(code != 0, "no loop device can be made here: " + device);
        device = device.Trim();
        try
        {
            _pfcli.Run("add_disk", device, "-n", "raw");
            DiskInfo disk = _pfcli.Disks().Single(d => d.Name == "raw");
            Assert.Equal(("device", device, 256UL << 20), (disk.Kind, disk.Path, disk.SizeBytes));
            _pfcli.Run("create_volume", "-v", "on-raw", "-s", "64m", "--disk", "raw");
            Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 3 0 4m", "-c", "flush", UriOf("on-raw"));
            Assert.Equal(0, _blockd.Stop());
            _blockd.Restart();
            string read = Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 3 0 4m", UriOf("on-raw"));
            Assert.DoesNotContain("failed", read, StringComparison.Ordinal);
            _pfcli.Refused("disk-in-service", "add_disk", device, "--force", "--yes");
            Assert.Equal(0, _blockd.Stop());
        }
        finally
        {
            _blockd.Stop();
            Blockd.Run("/sbin/losetup", "--detach", device);
        }
    }

    /// <summary>A client that has written and stays attached until its standard input ends.</summary>
    private Process Attach(string volume)
    {
        Process client = Process.Start(new ProcessStartInfo("qemu-io", ["-f", "raw", UriOf(volume)])
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        client.StandardInput.WriteLine("write -P 1 0 4k");
        client.StandardInput.Flush();
        for (string? line; (line = client.StandardOutput.ReadLine()) is not null && !line.Contains("wrote 4096", StringComparison.Ordinal);)
        {
        }

        return client;
    }

    private static void Detach(Process client)
    {
        client.StandardInput.WriteLine("quit");
        client.StandardInput.Close();
        Assert.True(client.WaitForExit(30_000));
    }

    private static long FindBlock(string path, byte content)
    {
        using FileStream file = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
        var block = new byte[4096];
        for (long at = 0; file.Read(block) == block.Length; at += block.Length)
        {
            if (!block.AsSpan().ContainsAnyExcept(content)) return at;
        }

        throw new InvalidDataException("the block is not there");
    }

    private static void Flip(string path, long at)
    {
        using FileStream file = new(path, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
        file.Position = at + 100;
        int old = file.ReadByte();
        file.Position = at + 100;
        file.WriteByte((byte)(old ^ 1));
        file.Flush(flushToDisk: true);
    }
}
