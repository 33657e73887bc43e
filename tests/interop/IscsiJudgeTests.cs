using System.Diagnostics;
using System.Text.Json;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>What libiscsi and qemu say of the real daemon over iSCSI.</summary>
public sealed class IscsiJudgeTests
{
    private const string Prefix = "iqn.2026-11.org.blockserver";

    [Fact]
    public void Libiscsi_finds_the_target_and_its_disk()
    {
        using var blockd = new Blockd("demo", "64m");
        string list = Blockd.Run("iscsi-ls", "-s", $"iscsi://127.0.0.1:{blockd.IscsiPort}");
        Assert.Contains($"Target:{Prefix}:demo Portal:127.0.0.1:{blockd.IscsiPort},1", list, StringComparison.Ordinal);
        Assert.Contains("Lun:0", list, StringComparison.Ordinal);
        Assert.Contains("DIRECT_ACCESS", Blockd.Run("iscsi-inq", Url(blockd)), StringComparison.Ordinal);
        Assert.Contains("Total size:67108864", Blockd.Run("iscsi-readcapacity16", Url(blockd)), StringComparison.Ordinal);
        (int code, string unknown) = Blockd.Try("iscsi-inq", Url(blockd, target: "nobody"));
        Assert.True(code != 0, unknown);
        Assert.Equal(0, blockd.Stop());
    }

    [Theory]
    [InlineData("none")]
    [InlineData("crc32c")] // qemu 7.2 takes it as an option only: of header_digest in an address it dies by itself
    public void What_goes_in_over_iSCSI_comes_out_over_NBD_and_the_other_way(string headerDigest)
    {
        using var blockd = new Blockd("demo", "64m");
        string image = Path.Combine(blockd.Directory, "in.img");
        byte[] bytes = new byte[64 << 20];
        new Random(5).NextBytes(bytes.AsSpan(3 << 20, 40 << 20));
        File.WriteAllBytes(image, bytes);
        string disk = $"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:{blockd.IscsiPort},"
            + $"file.target={Prefix}:demo,file.lun=0,file.header-digest={headerDigest}";
        Blockd.Run("qemu-img", "convert", "-n", "-m", "8", "-W", "-f", "raw", "--target-image-opts", image, disk);
        Blockd.Run("qemu-img", "compare", "--image-opts", "driver=raw,file.driver=file,file.filename=" + image, disk);
        Blockd.Run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, blockd.Uri);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1m 300k", "-c", "flush", blockd.Uri);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 0x5a 1m 300k", "-c", "discard 1m 1m", "-c", "read -P 0 1m 1m", Url(blockd));
        Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 0 1m 1m", blockd.Uri);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Only_who_knows_the_secret_gets_in_and_both_sides_prove_themselves()
    {
        string secrets = Path.GetTempFileName();
        File.WriteAllText(secrets, "user alice correct-horse-battery\nmutual blockd the-other-direction\n");
        using var blockd = new Blockd("demo", "64m", "--iscsi-chap", secrets);
        Assert.Contains("DIRECT_ACCESS", Blockd.Run("iscsi-inq", Url(blockd, "alice%correct-horse-battery@")), StringComparison.Ordinal);
        foreach (string user in new[] { "", "alice%wrong-horse-battery@", "bob%correct-horse-battery@" })
            Assert.NotEqual(0, Blockd.Try("iscsi-inq", Url(blockd, user)).Code);
        Assert.Equal(0, Blockd.Try("iscsi-inq", Url(blockd, "alice%correct-horse-battery@") + "?target_user=blockd&target_password=the-other-direction").Code);
        Assert.NotEqual(0, Blockd.Try("iscsi-inq", Url(blockd, "alice%correct-horse-battery@") + "?target_user=blockd&target_password=another-direction").Code);
        Assert.Equal(0, Mutual(blockd, "the-other-direction"));
        Assert.NotEqual(0, Mutual(blockd, "another-direction"));
        Assert.Equal(0, blockd.Stop());
        File.Delete(secrets);
    }

    [Fact]
    public void Qemu_sees_holes_and_data_and_what_it_discards_is_a_hole_over_NBD_too()
    {
        using var blockd = new Blockd("demo", "64m");
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 3 1m 192k", Url(blockd));
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 4 8m 4k", blockd.Uri);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "discard 1m 64k", Url(blockd));
        string[] runs = ["0 1114112 True", "1114112 131072 False", "1245184 7143424 True", "8388608 4096 False", "8392704 58716160 True"];
        Assert.Equal(runs, Map(Url(blockd)));
        Assert.Equal(runs, Map(blockd.Uri));
        Assert.Equal(0, blockd.Stop());
    }

    [Theory]
    [InlineData("-m", "32", "-b", "8", "-r")]
    [InlineData("-m", "1", "-b", "8", "-r")]
    [InlineData("-m", "4", "-b", "256")]
    public void Iscsi_perf_comes_to_its_end(params string[] shape)
    {
        using var blockd = new Blockd("demo", "64m");
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 3 0 64m", blockd.Uri);
        foreach (string digest in new[] { "", "?header_digest=crc32c" })
            Assert.Contains("finished.", Blockd.Run("iscsi-perf", ["-t", "1", .. shape, Url(blockd) + digest]), StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void A_thick_volume_of_large_blocks_is_one_disk_over_both_protocols()
    {
        using var blockd = new Blockd("demo", "64m");
        var pfcli = new Pfcli(blockd);
        pfcli.Run("create_volume", "-v", "large", "-s", "32m", "--thick", "--block-size", "4096");
        for (int i = 0; pfcli.Volume("large").UsedBytes < 32 << 20; i++)
        {
            Assert.True(i < 100, "the volume is not allocated within 10 s");
            Thread.Sleep(100);
        }

        string iscsi = Url(blockd, target: "large"), nbd = blockd.Uri.Replace("/demo", "/large", StringComparison.Ordinal);
        Assert.Contains("LOGICAL BLOCK LENGTH IN BYTES:4096", Blockd.Run("iscsi-readcapacity16", iscsi), StringComparison.Ordinal);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 0x11 512 1024", nbd);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 0x11 512 1024", "-c", "read -P 0 1536 2560", "-c", "write -P 0x22 4096 8k", iscsi);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 0x22 4k 8k", "-c", "discard 0 32m", nbd);
        Assert.Equal(32UL << 20, pfcli.Volume("large").UsedBytes);
        using (Process attached = Process.Start(new ProcessStartInfo("qemu-io", ["-f", "raw", iscsi]) { RedirectStandardInput = true, RedirectStandardOutput = true })!)
        {
            for (int i = 0; pfcli.Sessions().Count == 0 && i < 100; i++) Thread.Sleep(100);
            pfcli.Refused("volume-in-use", "export_volume", "-v", "large", "--block-size", "512");
            attached.StandardInput.Close();
            attached.WaitForExit();
        }

        for (int i = 0; pfcli.Sessions().Count > 0 && i < 100; i++) Thread.Sleep(100);
        pfcli.Run("export_volume", "-v", "large", "--block-size", "512", "--thick=false");
        Assert.Contains("LOGICAL BLOCK LENGTH IN BYTES:512", Blockd.Run("iscsi-readcapacity16", iscsi), StringComparison.Ordinal);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "discard 0 32m", iscsi);
        Assert.Equal(0UL, pfcli.Volume("large").UsedBytes);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void The_data_survive_a_kill()
    {
        using var blockd = new Blockd("demo", "64m");
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 0xa5 0 8m", "-c", "flush", Url(blockd));
        blockd.Kill();
        blockd.Restart();
        Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 0xa5 0 8m", Url(blockd));
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Pfcli_lists_the_session_and_a_stop_waits_for_nobody()
    {
        using var blockd = new Blockd("demo", "64m");
        using var attached = Process.Start(new ProcessStartInfo("qemu-io", ["-f", "raw", Url(blockd)])
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        string pfcli = Path.Combine(Blockd.Root, "out", "pfcli");
        string[] admin = ["--server", blockd.ApiUrl, "--token-file", Path.Combine(blockd.Directory, "admin.token")];
        string sessions = "";
        for (int i = 0; i < 100 && !sessions.Contains("iscsi", StringComparison.Ordinal); i++)
        {
            Thread.Sleep(100);
            sessions = Blockd.Run(pfcli, [.. admin, "list_session"]);
        }

        Assert.Contains("iscsi", sessions, StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
        attached.Kill();
        attached.WaitForExit();
    }

    /// <summary>The runs of qemu-img's map: offset, length and whether it reads as zeros.</summary>
    private static string[] Map(string url)
    {
        using JsonDocument map = JsonDocument.Parse(Blockd.Run("qemu-img", "map", "-f", "raw", "--output=json", url));
        return [.. map.RootElement.EnumerateArray().Select(run => $"{run.GetProperty("start")} {run.GetProperty("length")} {run.GetProperty("zero")}")];
    }

    private static string Url(Blockd blockd, string user = "", string target = "demo") =>
        $"iscsi://{user}127.0.0.1:{blockd.IscsiPort}/{Prefix}:{target}/0";

    private static int Mutual(Blockd blockd, string secret)
    {
        var start = new ProcessStartInfo("iscsi-inq", [Url(blockd, "alice%correct-horse-battery@")])
        {
            RedirectStandardOutput = true, RedirectStandardError = true,
        };
        start.Environment["LIBISCSI_CHAP_TARGET_USERNAME"] = "blockd";
        start.Environment["LIBISCSI_CHAP_TARGET_PASSWORD"] = secret;
        using Process process = Process.Start(start)!;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> error = process.StandardError.ReadToEndAsync();
        Assert.True(process.WaitForExit(60_000), "iscsi-inq hangs");
        Assert.NotNull(output.Result + error.Result);
        return process.ExitCode;
    }
}
