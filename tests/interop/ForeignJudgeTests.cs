using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>What foreign clients say of the real daemon: what they reject is wrong, whatever our own tests say.</summary>
public class ForeignJudgeTests
{
    [Fact]
    public void Nbdinfo_reads_every_property_over_tcp_and_unix()
    {
        using var blockd = new Blockd("demo", "64m");
        string json = Blockd.Run("nbdinfo", "--json", blockd.Uri);
        Assert.Contains("\"export-size\": 67108864", json, StringComparison.Ordinal);
        Assert.Contains("\"can_multi_conn\": true", json, StringComparison.Ordinal);
        Assert.Contains("\"can_fua\": true", json, StringComparison.Ordinal);
        Assert.Contains("base:allocation", json, StringComparison.Ordinal);
        Assert.Equal("67108864", Blockd.Run("nbdinfo", "--size", blockd.UnixUri).Trim());
        Assert.Contains("demo", Blockd.Run("nbdinfo", "--list", $"nbd://127.0.0.1:{blockd.Port}"), StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void An_ext4_image_of_real_files_comes_back_byte_equal_and_clean()
    {
        using var blockd = new Blockd("demo", "64m");
        string image = Path.Combine(blockd.Directory, "in.img");
        string back = Path.Combine(blockd.Directory, "out.img");
        using (FileStream file = File.Create(image)) file.SetLength(64 << 20);
        Blockd.Run("/sbin/mkfs.ext4", "-q", "-d", AppContext.BaseDirectory, image);
        Blockd.Run("nbdcopy", "--flush", image, blockd.Uri);
        Blockd.Run("nbdcopy", blockd.UnixUri, back);
        Blockd.Run("cmp", image, back);
        Blockd.Run("/sbin/e2fsck", "-fn", back);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void A_qcow2_converts_in_compares_equal_and_maps_as_allocated()
    {
        using var blockd = new Blockd("demo", "64m");
        string qcow2 = Path.Combine(blockd.Directory, "in.qcow2");
        Blockd.Run("qemu-img", "create", "-q", "-f", "qcow2", qcow2, "64m");
        Blockd.Run("qemu-io", "-c", "write -P 0x5a 1m 256k", "-c", "write -P 0xa5 32m 4k", qcow2);
        Blockd.Run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", "--target-is-zero", qcow2, blockd.Uri);
        Blockd.Run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, blockd.Uri);
        string map = Blockd.Run("nbdinfo", "--map", blockd.Uri);
        Assert.Equal(
            [(0, 1 << 20, 3), (1 << 20, 256 << 10, 0), (1280 << 10, (32 << 20) - (1280 << 10), 3),
             (32 << 20, 4 << 10, 0), ((32 << 20) + (4 << 10), (32 << 20) - (4 << 10), 3)],
            MapOf(map));
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Qemu_io_finds_what_it_wrote_discarded_and_zeroed()
    {
        using var blockd = new Blockd("demo", "64m");
        string output = Blockd.Run(
            "qemu-io", "-f", "raw",
            "-c", "write -P 1 0 1m", "-c", "write -P 2 512 512", "-c", "write -f -P 3 4097 5000", "-c", "discard 64k 64k",
            "-c", "write -z 200k 10k", "-c", "flush",
            "-c", "read -P 1 0 512", "-c", "read -P 2 512 512", "-c", "read -P 1 1024 3073", "-c", "read -P 3 4097 5000",
            "-c", "read -P 0 64k 64k", "-c", "read -P 0 200k 10k", "-c", "read -P 1 210k 100k", blockd.Uri);
        Assert.DoesNotContain("verification failed", output, StringComparison.Ordinal);
        Assert.DoesNotContain("failed", output, StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    private static (int, int, int)[] MapOf(string map) =>
        [.. map.Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Select(word => (int.Parse(word[0], null), int.Parse(word[1], null), int.Parse(word[2], null)))];
}
