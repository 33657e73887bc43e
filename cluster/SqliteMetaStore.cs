using System.Reflection;
using System.Runtime.InteropServices;
using BlockServer.Core;
using Microsoft.Data.Sqlite;

namespace BlockServer.Cluster;

/// <summary>
/// The embedded metadata store: one SQLite file (WAL, synchronous=FULL) with etcd's model, so that moving to etcd is a
/// copy of keys. One connection, one writer, guarded by a lock; thread-safe. Binds the distribution's libsqlite3.so.0.
/// Leases are kept in RAM: after a restart every key with a lease is gone, as if its owner had fallen silent.
/// </summary>
public sealed class SqliteMetaStore : IMetaStore
{
    private const int SchemaVersion = 1;

    private static readonly Lock s_providerLock = new();
    private static bool s_hasProvider;

    private readonly Lock _lock = new();
    private readonly SqliteConnection _connection;
    private readonly MetaHistory _history;
    private readonly MetaLeases _leases;
    private long _revision;
    private bool _isDisposed;

    private SqliteMetaStore(SqliteConnection connection, TimeProvider time)
    {
        _connection = connection;
        _leases = new MetaLeases(time);
        Execute("PRAGMA journal_mode=WAL");
        Execute("PRAGMA synchronous=FULL");
        long version = (long)Scalar("PRAGMA user_version")!;
        if (version > SchemaVersion)
            throw new InvalidDataException($"the metadata database has format {version}; this program knows {SchemaVersion}");
        if (version == 0)
        {
            using SqliteTransaction transaction = connection.BeginTransaction();
            Execute("CREATE TABLE kv(key TEXT PRIMARY KEY COLLATE BINARY, value BLOB NOT NULL, create_rev INTEGER NOT NULL, "
                + "mod_rev INTEGER NOT NULL, lease INTEGER NOT NULL) WITHOUT ROWID", transaction);
            Execute("CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID", transaction);
            Execute("INSERT INTO counter VALUES('revision', 0)", transaction);
            Execute($"PRAGMA user_version={SchemaVersion}", transaction);
            transaction.Commit();
        }

        Execute("DELETE FROM kv WHERE lease <> 0");
        _revision = (long)Scalar("SELECT value FROM counter WHERE name='revision'")!;
        _history = new MetaHistory(_revision);
    }

    /// <summary>Opens or creates the database at <paramref name="path"/>. Throws <see cref="InvalidDataException"/> for a
    /// newer or foreign file and <see cref="SqliteException"/> when it cannot be opened.</summary>
    public static SqliteMetaStore Open(string path, TimeProvider? time = null)
    {
        EnsureProvider();
        string settings = new SqliteConnectionStringBuilder { DataSource = path, Mode = SqliteOpenMode.ReadWriteCreate, Pooling = false }
            .ToString();
        var connection = new SqliteConnection(settings);
        try
        {
            connection.Open();
            return new SqliteMetaStore(connection, time ?? TimeProvider.System);
        }
        catch (SqliteException e) when (e.SqliteErrorCode == 26) // SQLITE_NOTADB
        {
            connection.Dispose();
            throw new InvalidDataException($"{path} is not a metadata database", e);
        }
        catch
        {
            connection.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default)
    {
        List<MetaEntry> found = Read("SELECT key, value, create_rev, mod_rev FROM kv WHERE key=$from", key, "");
        return new(found.Count == 0 ? null : found[0]);
    }

    /// <inheritdoc/>
    public ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default)
    {
        const string Everything = "SELECT key, value, create_rev, mod_rev FROM kv WHERE key>=$from ORDER BY key";
        const string Part = "SELECT key, value, create_rev, mod_rev FROM kv WHERE key>=$from AND key<$end ORDER BY key";
        // Keys are compared as UTF-8 bytes: all that begin with the prefix lie before its last character's successor.
        return new(prefix.Length == 0 ? Read(Everything, "", "") : Read(Part, prefix, prefix[..^1] + (char)(prefix[^1] + 1)));
    }

    /// <inheritdoc/>
    public ValueTask<MetaResult> TransactAsync(
        IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default)
    {
        lock (_lock)
        {
            try
            {
                Expire();
            }
            catch (SqliteException)
            {
                return new(new MetaResult(MetaOutcome.Unknown, _revision));
            }

            if (changes.Any(c => c.Value is not null && c.LeaseId != 0 && !_leases.IsAlive(c.LeaseId)))
                return new(new MetaResult(MetaOutcome.Failed, _revision));
            return new(Transact(compares, changes));
        }
    }

    /// <inheritdoc/>
    public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default)
    {
        lock (_lock) return new(_leases.Grant(timeToLive));
    }

    /// <inheritdoc/>
    public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default)
    {
        lock (_lock)
        {
            Expire();
            return new(_leases.KeepAlive(leaseId));
        }
    }

    /// <inheritdoc/>
    public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) =>
        _history.WatchAsync(prefix, fromRevision, cancel);

    /// <inheritdoc/>
    public ValueTask DisposeAsync()
    {
        lock (_lock)
        {
            if (!_isDisposed) _connection.Dispose();
            _isDisposed = true;
        }

        return default;
    }

    private static void EnsureProvider()
    {
        lock (s_providerLock)
        {
            if (s_hasProvider) return;
            NativeLibrary.SetDllImportResolver(typeof(SQLitePCL.SQLite3Provider_e_sqlite3).Assembly, Resolve);
            SQLitePCL.raw.SetProvider(new SQLitePCL.SQLite3Provider_e_sqlite3());
            s_hasProvider = true;
        }

        static nint Resolve(string name, Assembly assembly, DllImportSearchPath? path) =>
            name == "e_sqlite3" ? NativeLibrary.Load("libsqlite3.so.0") : 0;
    }

    private List<MetaEntry> Read(string sql, string from, string end)
    {
        lock (_lock)
        {
            try
            {
                Expire();
                using SqliteCommand command = Command(sql, null, ("$from", from), ("$end", end));
                using SqliteDataReader reader = command.ExecuteReader();
                var entries = new List<MetaEntry>();
                while (reader.Read()) entries.Add(EntryOf(reader));
                return entries;
            }
            catch (SqliteException e)
            {
                throw new MetaException("the metadata database cannot be read: " + e.Message, e);
            }
        }
    }

    private static MetaEntry EntryOf(SqliteDataReader reader) =>
        new(reader.GetString(0), (byte[])reader.GetValue(1), reader.GetInt64(2), reader.GetInt64(3));

    private MetaResult Transact(IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes)
    {
        long revision = _revision + 1;
        var events = new List<MetaEvent>(changes.Count);
        try
        {
            using SqliteTransaction transaction = _connection.BeginTransaction(deferred: false);
            foreach (MetaCompare compare in compares)
            {
                object? actual = Scalar("SELECT mod_rev FROM kv WHERE key=$key", transaction, ("$key", compare.Key));
                if ((long)(actual ?? 0L) == compare.ModRevision) continue;
                transaction.Rollback();
                return new MetaResult(MetaOutcome.Failed, _revision);
            }

            foreach (MetaChange change in changes)
            {
                if (change.Value is { } value)
                {
                    byte[] bytes = value.ToArray();
                    Execute(
                        "INSERT INTO kv VALUES($key, $value, $revision, $revision, $lease) ON CONFLICT(key) DO UPDATE SET "
                        + "value=excluded.value, mod_rev=excluded.mod_rev, lease=excluded.lease",
                        transaction,
                        ("$key", change.Key), ("$value", bytes), ("$revision", revision), ("$lease", change.LeaseId));
                    events.Add(new MetaEvent(change.Key, bytes, revision));
                }
                else if (Execute("DELETE FROM kv WHERE key=$key", transaction, ("$key", change.Key)) > 0)
                {
                    events.Add(new MetaEvent(change.Key, null, revision));
                }
            }

            Execute("UPDATE counter SET value=$value WHERE name='revision'", transaction, ("$value", revision));
            transaction.Commit();
        }
        catch (SqliteException)
        {
            // The commit may have reached the disk: the counter, which every transaction moves, tells. When it does not,
            // whoever asked reads back.
            if (TryReadRevision() != revision) return new MetaResult(MetaOutcome.Unknown, _revision);
        }

        _revision = revision;
        _history.Add(events);
        return new MetaResult(MetaOutcome.Committed, revision);
    }

    private long? TryReadRevision()
    {
        try
        {
            return (long?)Scalar("SELECT value FROM counter WHERE name='revision'");
        }
        catch (SqliteException)
        {
            return null;
        }
    }

    private void Expire()
    {
        ObjectDisposedException.ThrowIf(_isDisposed, this);
        foreach (long lease in _leases.TakeExpired())
        {
            var gone = new List<MetaChange>();
            using (SqliteCommand command = Command("SELECT key FROM kv WHERE lease=$lease ORDER BY key"))
            {
                command.Parameters.AddWithValue("$lease", lease);
                using SqliteDataReader reader = command.ExecuteReader();
                while (reader.Read()) gone.Add(new MetaChange(reader.GetString(0), null));
            }

            if (gone.Count > 0 && Transact([], gone).Outcome != MetaOutcome.Committed) _leases.ExpireAgain(lease);
        }
    }

    private object? Scalar(string sql, SqliteTransaction? transaction = null, params (string, object)[] values)
    {
        using SqliteCommand command = Command(sql, transaction, values);
        return command.ExecuteScalar();
    }

    private int Execute(string sql, SqliteTransaction? transaction = null, params (string, object)[] values)
    {
        using SqliteCommand command = Command(sql, transaction, values);
        return command.ExecuteNonQuery();
    }

#pragma warning disable CA2100 // Every statement is a constant of this file; values travel as parameters.
    private SqliteCommand Command(string sql, SqliteTransaction? transaction = null, params (string Name, object Value)[] values)
    {
        SqliteCommand command = _connection.CreateCommand();
        command.CommandText = sql;
        command.Transaction = transaction;
        foreach ((string name, object value) in values) command.Parameters.AddWithValue(name, value);
        return command;
    }
#pragma warning restore CA2100
}
