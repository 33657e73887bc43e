using System.Globalization;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>An append-only volume as foreign initiators and NBD clients see it: a disk of its length that nobody can write to.</summary>
public sealed class AofTests : IDisposable
{
    private const string Prefix = "iqn.2026-11.org.blockserver";

    private readonly Blockd _blockd = new("demo", "64m");
    private readonly Pfcli _pfcli;

    public AofTests() => _pfcli = new Pfcli(_blockd);

    public void Dispose() => _blockd.Dispose();

    [Fact]
    public void Initiators_read_what_was_appended_and_write_nothing()
    {
        byte[] content = new byte[50_000];
        new Random(7).NextBytes(content);
        _pfcli.Run("aof_create", "-v", "events");
        Append(content.AsSpan(0, 10_000));
        Assert.Contains("Total size:12288", ReadCapacity("events"), StringComparison.Ordinal);
        Assert.Equal(Shown(content.AsSpan(0, 10_000)), ReadAll(Url("events")));
        Assert.Equal(Shown(content.AsSpan(0, 10_000)), ReadAll(_blockd.Uri.Replace("demo", "events", StringComparison.Ordinal)));

        // Refused where it is opened for writing already, and where only the command says so.
        (int code, string said) = Blockd.Try("qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", Url("events"));
        Assert.True(code != 0 && said.Contains("write protected", StringComparison.Ordinal), said);
        said = Blockd.Run("iscsi-test-cu", "-d", "-V", "--test=SCSI.ReadOnly.ReadOnlySBC", Url("events"));
        Assert.Matches(@"tests +1 +1 +1 +0 ", said); // in all, ran, passed, failed
        Assert.Equal(Shown(content.AsSpan(0, 10_000)), ReadAll(Url("events")));

        // It grows: the capacity follows, and a snapshot keeps the length of its cut.
        _pfcli.Run("create_snapshot", "-v", "events", "-n", "noon");
        Append(content.AsSpan(10_000));
        Assert.Contains("Total size:53248", ReadCapacity("events"), StringComparison.Ordinal);
        Assert.Equal(Shown(content), ReadAll(Url("events")));
        Assert.Contains("Total size:12288", ReadCapacity("events:noon"), StringComparison.Ordinal);
        Assert.Equal(Shown(content.AsSpan(0, 10_000)), ReadAll(Url("events:noon")));

        // Sealed, and as a LUN of a target with others, it stays what it is.
        _pfcli.Run("aof_seal", "-v", "events", "--yes");
        _pfcli.Run("create_target", "-t", "iqn.2026-11.org.example:logs");
        _pfcli.Run("add_lun", "-t", "iqn.2026-11.org.example:logs", "-v", "demo");
        _pfcli.Run("add_lun", "-t", "iqn.2026-11.org.example:logs", "-v", "events");
        _pfcli.Run("allow_initiator", "-t", "iqn.2026-11.org.example:logs", "-i", "*");
        Assert.Equal(Shown(content), ReadAll($"iscsi://127.0.0.1:{Text(_blockd.IscsiPort)}/iqn.2026-11.org.example:logs/1"));
        Assert.Equal(0, _blockd.Stop());
    }

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);

    /// <summary>Rounded up to whole blocks, with zeros behind the length.</summary>
    private static byte[] Shown(ReadOnlySpan<byte> content)
    {
        var shown = new byte[(content.Length + 4095) / 4096 * 4096];
        content.CopyTo(shown);
        return shown;
    }

    private void Append(ReadOnlySpan<byte> bytes)
    {
        string file = Path.Combine(_blockd.Directory, "part");
        File.WriteAllBytes(file, bytes);
        _pfcli.Run("aof_append", "-v", "events", "-f", file);
    }

    private string Url(string target) => $"iscsi://127.0.0.1:{Text(_blockd.IscsiPort)}/{Prefix}:{target}/0";

    private string ReadCapacity(string target) => Blockd.Run("iscsi-readcapacity16", Url(target));

    private byte[] ReadAll(string source)
    {
        string file = Path.Combine(_blockd.Directory, "copy.img");
        File.Delete(file);
        Blockd.Run("qemu-img", "convert", "-f", "raw", "-O", "raw", source, file);
        return File.ReadAllBytes(file);
    }
}
