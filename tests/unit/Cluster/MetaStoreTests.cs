using System.Text;
using BlockServer.Cluster;
using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>What every metadata store does, whatever it is made of.</summary>
public abstract class MetaStoreTests : IAsyncLifetime
{
    private IMetaStore _store = null!;

    private protected ManualTime Time { get; } = new();

    private protected abstract IMetaStore Open();

    public virtual ValueTask InitializeAsync()
    {
        _store = Open();
        return default;
    }

    public virtual ValueTask DisposeAsync()
    {
        GC.SuppressFinalize(this);
        return _store.DisposeAsync();
    }

    private protected static byte[] Bytes(string text) => Encoding.UTF8.GetBytes(text);

    private static string Text(MetaEntry? entry) => entry is null ? "-" : Encoding.UTF8.GetString(entry.Value.Span);

    private async Task<long> PutAsync(string key, string value, long lease = 0)
    {
        MetaResult result = await _store.TransactAsync([], [new MetaChange(key, Bytes(value), lease)]);
        Assert.Equal(MetaOutcome.Committed, result.Outcome);
        return result.Revision;
    }

    private async Task<string> KeysAsync(string prefix) => string.Join(' ', (await _store.RangeAsync(prefix)).Select(e => e.Key));

    [Fact]
    public async Task A_key_is_absent_then_put_changed_and_deleted()
    {
        Assert.Null(await _store.GetAsync("a"));
        long first = await PutAsync("a", "1");
        long second = await PutAsync("a", "2");
        MetaEntry entry = (await _store.GetAsync("a"))!;
        Assert.Equal(("2", first, second), (Text(entry), entry.CreateRevision, entry.ModRevision));
        Assert.Equal(second, first + 1);
        await _store.TransactAsync([], [new MetaChange("a", null)]);
        Assert.Null(await _store.GetAsync("a"));
        long again = await PutAsync("a", "");
        entry = (await _store.GetAsync("a"))!;
        Assert.Equal(("", again, again), (Text(entry), entry.CreateRevision, entry.ModRevision));
    }

    [Fact]
    public async Task All_changes_happen_when_all_compares_hold_else_none()
    {
        long a = await PutAsync("a", "1");
        MetaResult stale = await _store.TransactAsync(
            [new("a", a), new("b", 7)], [new("a", Bytes("2")), new("b", Bytes("2")), new("c", null)]);
        Assert.Equal(MetaOutcome.Failed, stale.Outcome);
        Assert.Equal(("1", "-"), (Text(await _store.GetAsync("a")), Text(await _store.GetAsync("b"))));
        MetaResult right = await _store.TransactAsync([new("a", a), new("b", 0)], [new("a", null), new("b", Bytes("2"))]);
        Assert.Equal(MetaOutcome.Committed, right.Outcome);
        Assert.Equal(("-", "2"), (Text(await _store.GetAsync("a")), Text(await _store.GetAsync("b"))));
        Assert.Equal(right.Revision, (await _store.GetAsync("b"))!.ModRevision);
        // A key that was deleted compares as absent.
        Assert.Equal(MetaOutcome.Committed, (await _store.TransactAsync([new("a", 0)], [new("a", Bytes("3"))])).Outcome);
        Assert.Equal(MetaOutcome.Failed, (await _store.TransactAsync([new("a", 0)], [new("a", Bytes("4"))])).Outcome);
    }

    [Fact]
    public async Task A_range_is_exactly_the_keys_of_a_prefix_in_ordinal_order()
    {
        foreach (string key in new[] { "vol/2", "vol/10", "vol", "vol0", "vol.", "vol/", "voM/1", "Vol/1", "w", "vol/é" }) await PutAsync(key, key);
        Assert.Equal("vol/ vol/10 vol/2 vol/é", await KeysAsync("vol/"));
        Assert.Equal("Vol/1 voM/1 vol vol. vol/ vol/10 vol/2 vol/é vol0 w", await KeysAsync(""));
        Assert.Equal("", await KeysAsync("x"));
    }

    [Fact]
    public async Task A_value_is_what_it_was_when_it_was_given()
    {
        byte[] value = Bytes("before");
        await _store.TransactAsync([], [new MetaChange("a", value)]);
        value[0] = (byte)'X';
        Assert.Equal("before", Text(await _store.GetAsync("a")));
        byte[] every = [.. Enumerable.Range(0, 256).Select(i => (byte)i)];
        await _store.TransactAsync([], [new MetaChange("b", every)]);
        Assert.Equal(every, (await _store.GetAsync("b"))!.Value.ToArray());
    }

    [Fact]
    public async Task A_key_with_a_lease_lives_as_long_as_the_lease_is_renewed()
    {
        long lease = await _store.GrantLeaseAsync(TimeSpan.FromSeconds(10));
        await PutAsync("with", "1", lease);
        await PutAsync("freed", "1", lease);
        await PutAsync("freed", "2");
        Time.Move(TimeSpan.FromSeconds(9));
        Assert.True(await _store.KeepAliveAsync(lease));
        Time.Move(TimeSpan.FromSeconds(9));
        Assert.NotNull(await _store.GetAsync("with"));
        Time.Move(TimeSpan.FromSeconds(2));
        Assert.Equal("freed", await KeysAsync(""));
        Assert.False(await _store.KeepAliveAsync(lease));
        Assert.Equal(MetaOutcome.Failed, (await _store.TransactAsync([], [new MetaChange("late", Bytes("1"), lease)])).Outcome);
        Assert.Null(await _store.GetAsync("late"));
    }

    [Fact]
    public async Task A_watch_tells_every_later_change_in_order_and_deletions_without_a_value()
    {
        long from = await PutAsync("a/0", "0");
        await _store.TransactAsync([], [new("a/1", Bytes("1")), new("b", Bytes("x")), new("a/2", Bytes("2"))]);
        await _store.TransactAsync([], [new("a/1", null), new("a/9", null)]);
        var seen = new List<string>();
        await foreach (MetaEvent change in _store.WatchAsync("a/", from, TestContext.Current.CancellationToken))
        {
            seen.Add($"{change.Key}={(change.Value is { } v ? Encoding.UTF8.GetString(v.Span) : "gone")}@{change.Revision - from}");
            if (seen.Count == 3) await PutAsync("a/3", "3"); // while the watch waits
            if (seen.Count == 4) break;
        }

        Assert.Equal(["a/1=1@1", "a/2=2@1", "a/1=gone@2", "a/3=3@3"], seen);
    }

    [Fact]
    public async Task Transactions_of_many_threads_are_one_after_the_other()
    {
        await PutAsync("count", "0");
        await Task.WhenAll(Enumerable.Range(0, 8).Select(_ => Task.Run(async () =>
        {
            for (int i = 0; i < 20;)
            {
                MetaEntry now = (await _store.GetAsync("count"))!;
                string next = (int.Parse(Text(now), null) + 1).ToString(System.Globalization.CultureInfo.InvariantCulture);
                if ((await _store.TransactAsync([new("count", now.ModRevision)], [new("count", Bytes(next))])).Outcome == MetaOutcome.Committed) i++;
            }
        })));
        Assert.Equal("160", Text(await _store.GetAsync("count")));
    }
}

public sealed class MemoryMetaStoreTests : MetaStoreTests
{
    private protected override IMetaStore Open() => new MemoryMetaStore(Time);
}

public sealed class SqliteMetaStoreTests : MetaStoreTests
{
    private readonly string _directory = Directory.CreateTempSubdirectory("blockd-meta-").FullName;

    private string DatabasePath => Path.Combine(_directory, "metadata.db");

    private protected override IMetaStore Open() => SqliteMetaStore.Open(DatabasePath, Time);

    public override async ValueTask DisposeAsync()
    {
        await base.DisposeAsync();
        Directory.Delete(_directory, recursive: true);
    }

    [Fact]
    public async Task Everything_but_leased_keys_survives_a_restart()
    {
        string path = Path.Combine(_directory, "other.db");
        long revision;
        await using (SqliteMetaStore store = SqliteMetaStore.Open(path, Time))
        {
            long lease = await store.GrantLeaseAsync(TimeSpan.FromHours(1));
            await store.TransactAsync([], [new("kept", Bytes("1")), new("leased", Bytes("1"), lease)]);
            revision = (await store.TransactAsync([], [new("kept", Bytes("2"))])).Revision;
        }

        await using SqliteMetaStore again = SqliteMetaStore.Open(path, Time);
        MetaEntry entry = Assert.Single(await again.RangeAsync(""));
        Assert.Equal(("kept", revision), (entry.Key, entry.ModRevision));
        Assert.Equal(revision + 1, (await again.TransactAsync([new("kept", revision)], [new("kept", Bytes("3"))])).Revision);
    }

    [Fact]
    public void A_foreign_or_newer_file_is_refused_with_a_sentence()
    {
        string foreign = Path.Combine(_directory, "foreign.db");
        File.WriteAllText(foreign, new string('x', 8192));
        Assert.Contains("not a metadata database", Assert.Throws<InvalidDataException>(() => SqliteMetaStore.Open(foreign)).Message, StringComparison.Ordinal);
        string newer = Path.Combine(_directory, "newer.db");
        using (SqliteMetaStoreAccess.Newer(newer)) { }
        Assert.Contains("format 99", Assert.Throws<InvalidDataException>(() => SqliteMetaStore.Open(newer)).Message, StringComparison.Ordinal);
    }
}

/// <summary>Makes databases that this program would not make.</summary>
internal static class SqliteMetaStoreAccess
{
    public static IDisposable Newer(string path)
    {
        SqliteMetaStore.Open(path).DisposeAsync().AsTask().GetAwaiter().GetResult();
        // user_version is a big-endian u32 at offset 60 of an SQLite file; the write-ahead log is empty after a close.
        FileStream file = File.Open(path, FileMode.Open, FileAccess.Write);
        file.Position = 60;
        file.Write([0, 0, 0, 99]);
        return file;
    }
}
