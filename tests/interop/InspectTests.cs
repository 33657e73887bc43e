using System.Globalization;
using System.Security.Cryptography;
using System.Text.Json;
using BlockServer.Pfinspect;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>pfinspect on stores that the daemon made: what it shows is what was done, damage is found and named, nothing is written.</summary>
public sealed class InspectTests : IDisposable
{
    private const int Block = 4096;
    private readonly Blockd _blockd = new("demo", "8m", "--create-volume", "second:4m", "--durability", "ack");

    private string Store => _blockd.Store;

    [Fact]
    public void A_stopped_store_is_shown_as_the_clients_left_it()
    {
        Fill();
        Assert.Equal(0, _blockd.Stop());
        byte[] before = HashOfStore();
        DateTime written = File.GetLastWriteTimeUtc(Store);

        JsonElement root = Json("superblock");
        Assert.True(root.GetProperty("clean").GetBoolean());
        Assert.Equal(4, root.GetProperty("copies").GetArrayLength());
        Assert.All(root.GetProperty("copies").EnumerateArray(), copy => Assert.True(copy.GetProperty("chosen").GetBoolean()));
        JsonElement[] volumes = [.. Json("volumes").GetProperty("volumes").EnumerateArray()];
        Assert.Equal(["demo", "second"], volumes.Select(v => v.GetProperty("name").GetString()));
        Assert.Equal([36L * Block, 16L * Block], volumes.Select(v => v.GetProperty("usedBytes").GetInt64()));

        // demo: 32 blocks from 64k on without the 4 trimmed ones, 8 across the border of the first two extents.
        (long Offset, long Length)[] map = [.. RunsOf("demo").Select(run => (run.Offset, run.Length))];
        Assert.Equal(36L * Block, map.Sum(run => run.Length));
        Assert.Equal([16, 17, 18, 19, 24, 47, 252, 259], ((int[])[16, 17, 18, 19, 24, 47, 252, 259]).Where(b => Holds(map, b)));
        Assert.DoesNotContain((int[])[0, 15, 20, 21, 22, 23, 48, 251, 260], b => Holds(map, b));

        foreach (string command in (string[])["check", "verify"])
        {
            (int code, string said) = Inspect(command);
            Assert.True(code == 0, said);
            Assert.EndsWith("\nsound\n", said, StringComparison.Ordinal);
            Assert.DoesNotContain("warning", said, StringComparison.Ordinal);
        }

        Assert.Contains("52 blocks read", Inspect("verify").Said, StringComparison.Ordinal);
        Assert.Equal(0, Inspect("log").Code);
        Assert.Equal(before, HashOfStore());
        Assert.Equal(written, File.GetLastWriteTimeUtc(Store));
    }

    [Fact]
    public void A_killed_stores_log_is_dumped_and_replayed_in_memory_only()
    {
        Fill();
        _blockd.Kill();
        byte[] before = HashOfStore();
        JsonElement log = Json("log");
        string[] kinds = [.. log.GetProperty("pages").EnumerateArray().SelectMany(p => p.GetProperty("records").EnumerateArray())
            .Select(r => r.GetProperty("kind").GetString()!).Distinct()];
        Assert.Contains("Write", kinds);
        Assert.Contains("Hole", kinds);
        Assert.Contains("Volume", kinds);
        (int code, string said) = Inspect("verify");
        Assert.True(code == 0, said);
        Assert.Contains("52 blocks read\nsound", said, StringComparison.Ordinal);
        Assert.DoesNotContain(", 0 log records replayed", said, StringComparison.Ordinal);
        Assert.Equal(before, HashOfStore());
    }

    [Fact]
    public void One_flipped_bit_anywhere_in_a_stopped_store_is_found_and_named()
    {
        Fill();
        Assert.Equal(0, _blockd.Stop());
        JsonElement root = Json("superblock");
        foreach (JsonElement copy in root.GetProperty("copies").EnumerateArray())
        {
            int number = copy.GetProperty("copy").GetInt32();
            MustName(copy.GetProperty("offsetBytes").GetInt64() + 50, 0, $"warning superblock: copy {number}: ");
        }

        long slots = (2 * Block) + root.GetProperty("ringBytes").GetInt64();
        int homes = 0;
        for (int home = 0; home < 2 * root.GetProperty("slotHighWater").GetInt32(); home++)
        {
            long at = slots + ((long)home * Block);
            if (IsZero(at)) continue;
            bool isTombstone = KindAt(at) == 1;
            // The hundreds of tombstones are alike: some of them will do.
            if (isTombstone && home % 41 != 0) continue;
            if (!isTombstone) homes++;
            // Which of the two homes was the only or the newer one decides whether it is a loss, never whether it is named.
            MustName(at + 900, null, $"slot {home / 2}", $"home {(home % 2 == 0 ? 'A' : 'B')}");
        }

        Assert.InRange(homes, 5, 20); // two heads and the extents of both volumes, some in both homes
        foreach (string volume in (string[])["demo", "second"])
        {
            foreach ((long offset, long length, long block) in RunsOf(volume))
            {
                for (long i = 0; i < length / Block; i++)
                    MustName(((block + i) * Block) + 4000, 1, $"error S1: {volume} offset {offset + (i * Block)}: block {block + i} does not match its checksum");
            }
        }
    }

    [Fact]
    public void One_flipped_bit_in_the_log_of_a_killed_store_is_found_and_named()
    {
        Fill();
        _blockd.Kill();
        JsonElement log = Json("log");
        ulong ringPages = (ulong)Json("superblock").GetProperty("ringBytes").GetInt64() / Block;
        ulong durable = log.GetProperty("durableLsn").GetUInt64();
        ulong[] pages = [.. log.GetProperty("pages").EnumerateArray().Select(p => p.GetProperty("pageNumber").GetUInt64())];
        Assert.True(pages.Length >= 8, $"only {pages.Length} pages in the log");
        foreach (ulong page in pages)
        {
            ulong index = page % ringPages;
            // What was durable must be there; the last page looks like one that was being written.
            bool isLost = page * Block < durable;
            MustName((2 * Block) + (long)(index * Block) + 70, isLost ? 1 : null, $"warning log: ring page {index}", isLost ? "error log: " : "");
        }
    }

    [Fact]
    public void Less_than_two_good_superblocks_or_a_cut_file_is_refused()
    {
        Assert.Equal(0, _blockd.Stop());
        long[] copies = [.. Json("superblock").GetProperty("copies").EnumerateArray().Select(c => c.GetProperty("offsetBytes").GetInt64())];
        Array.ForEach(copies[..3], at => Flip(at + 50));
        (int code, string said) = Inspect("check");
        Assert.Equal(1, code);
        Assert.Contains("no two superblock copies that agree", said, StringComparison.Ordinal);
        Array.ForEach(copies[..3], at => Flip(at + 50));
        Assert.Equal(0, Inspect("check").Code);
        using (FileStream file = File.OpenWrite(Store)) file.SetLength(file.Length / 2);
        (code, said) = Inspect("check");
        Assert.Equal(1, code);
        Assert.Single(said.TrimEnd('\n').Split('\n'));
        Assert.Contains("smaller", said, StringComparison.Ordinal);
    }

    /// <inheritdoc/>
    public void Dispose() => _blockd.Dispose();

    private void Fill()
    {
        Blockd.Run(
            "qemu-io", "-f", "raw", "-c", "write -P 1 64k 128k", "-c", "discard 80k 16k", "-c", "write -P 2 1008k 32k",
            "-c", "write -P 3 64k 4k", "-c", "flush", _blockd.Uri);
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 4 1m 64k", "-c", "write -P 5 1m 64k", "-c", "flush", _blockd.Uri.Replace("demo", "second", StringComparison.Ordinal));
    }

    private static bool Holds((long Offset, long Length)[] map, int block) =>
        map.Any(run => (long)block * Block >= run.Offset && (long)block * Block < run.Offset + run.Length);

    private List<(long Offset, long Length, long Block)> RunsOf(string volume) =>
    [
        .. Json("map", volume).GetProperty("runs").EnumerateArray().Select(run => (
            run.GetProperty("offsetBytes").GetInt64(), run.GetProperty("lengthBytes").GetInt64(), run.GetProperty("block").GetInt64())),
    ];

    /// <summary>Flips a bit, has <c>verify</c> name it, flips it back, after which all is well again.</summary>
    private void MustName(long offset, int? code, params string[] parts)
    {
        Flip(offset);
        (int got, string said) = Inspect("verify");
        Flip(offset);
        if (code is { } wanted) Assert.True(got == wanted, $"verify ended with {got} after a flip at {offset}:\n{said}");
        foreach (string part in parts)
            Assert.True(said.Contains(part, StringComparison.Ordinal), $"a flip at {offset} is not named '{part}':\n{said}");
    }

    private void Flip(long offset)
    {
        using FileStream file = new(Store, FileMode.Open, FileAccess.ReadWrite);
        file.Position = offset;
        int value = file.ReadByte();
        file.Position = offset;
        file.WriteByte((byte)(value ^ 4));
    }

    private byte KindAt(long offset)
    {
        using FileStream file = File.OpenRead(Store);
        file.Position = offset + 4;
        return (byte)file.ReadByte();
    }

    private bool IsZero(long offset)
    {
        using FileStream file = File.OpenRead(Store);
        file.Position = offset;
        var page = new byte[Block];
        file.ReadExactly(page);
        return !page.AsSpan().ContainsAnyExcept((byte)0);
    }

    private byte[] HashOfStore()
    {
        using FileStream file = File.OpenRead(Store);
        return SHA256.HashData(file);
    }

    private JsonElement Json(string command, params string[] more)
    {
        (int code, string said) = Inspect(command, [.. more, "--json"]);
        Assert.True(code == 0, said);
        return JsonDocument.Parse(said).RootElement;
    }

    private (int Code, string Said) Inspect(string command, params string[] more)
    {
        using var output = new StringWriter(CultureInfo.InvariantCulture);
        int code = CommandLine.Run([command, Store, .. more], output, output);
        return (code, output.ToString());
    }
}
