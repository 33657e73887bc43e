using System.Security.Cryptography;
using System.Text;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>
/// The directory that holds everything of one daemon: <c>lock</c> (so that two daemons never share it),
/// <c>metadata.db</c>, <c>admin.token</c>, <c>store-N.blk</c>. Owned until disposed.
/// </summary>
internal sealed class DataDirectory : IDisposable
{
    private const UnixFileMode OwnerOnly = UnixFileMode.UserRead | UnixFileMode.UserWrite;

    private readonly FileStream _lock;

    private DataDirectory(string path, FileStream locked)
    {
        DirectoryPath = path;
        _lock = locked;
    }

    public string DirectoryPath { get; }

    public string MetadataPath => Path.Combine(DirectoryPath, "metadata.db");

    public string TokenPath => Path.Combine(DirectoryPath, "admin.token");

    /// <summary>The socket where files are handed over.</summary>
    public string HandedPath => Path.Combine(DirectoryPath, "files.sock");

    /// <summary>Where the audit log lies.</summary>
    public string AuditPath => Path.Combine(DirectoryPath, "audit");

    /// <summary>Where the store number <paramref name="index"/> lies by default.</summary>
    public string StorePath(int index) => Path.Combine(DirectoryPath, $"store-{index}.blk");

    /// <summary>Store files that lie here, by name.</summary>
    public IReadOnlyList<string> StoreFiles() =>
        [.. Directory.EnumerateFiles(DirectoryPath, "store-*.blk").Order(StringComparer.Ordinal)];

    /// <summary>Throws <see cref="DiskException"/> when <paramref name="path"/> is one of the daemon's own files.</summary>
    public void CheckMayHoldStore(string path)
    {
        if (Directory.Exists(path)) throw new DiskException(409, "not-a-disk", $"{path} is a directory; name a file or a block device");
        bool isOurs = Path.GetDirectoryName(path) == DirectoryPath && Path.GetExtension(path) != ".blk";
        if (isOurs) throw new DiskException(409, "not-a-disk", $"{path}: in the data directory a disk is a file that ends in .blk");
    }

    /// <summary>Creates the directory if needed and locks it. Throws <see cref="IOException"/> with a sentence.</summary>
    public static DataDirectory Open(string path)
    {
        try
        {
            Directory.CreateDirectory(path, OwnerOnly | UnixFileMode.UserExecute);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            string why = File.Exists(path) ? "it is a file" : e is UnauthorizedAccessException ? "this user may not write there" : e.Message;
            throw new IOException($"the data directory {path} cannot be made: {why}; choose another --data-dir", e);
        }

        string lockPath = Path.Combine(path, "lock");
        try
        {
            // FileShare.None is an exclusive flock: it goes with the process, however that ends.
            return new DataDirectory(path, new FileStream(lockPath, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None));
        }
        catch (IOException e)
        {
            throw new IOException($"{path} is in use by another blockd; stop it or choose another --data-dir", e);
        }
        catch (UnauthorizedAccessException e)
        {
            throw new IOException($"{path} may not be written by this user; choose another --data-dir", e);
        }
    }

    /// <summary>
    /// Makes sure that a token exists whose SHA-256 is <paramref name="knownHash"/>: a missing, foreign or damaged token
    /// file is replaced by a new token. Answers the hash to keep (hex).
    /// </summary>
    public string EnsureToken(string? knownHash)
    {
        if (knownHash is not null && File.Exists(TokenPath) && HashOf(File.ReadAllText(TokenPath).Trim()) == knownHash)
        {
            File.SetUnixFileMode(TokenPath, OwnerOnly);
            return knownHash;
        }

        string token = Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(32));
        string fresh = TokenPath + ".new";
        File.Delete(fresh);
        var options = new FileStreamOptions { Mode = FileMode.CreateNew, Access = FileAccess.Write, UnixCreateMode = OwnerOnly };
        using (var file = new FileStream(fresh, options))
        {
            file.Write(Encoding.ASCII.GetBytes(token + "\n"));
            file.Flush(flushToDisk: true);
        }

        File.Move(fresh, TokenPath, overwrite: true);
        return HashOf(token);
    }

    /// <summary>SHA-256 of a token in hex.</summary>
    public static string HashOf(string token) => Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(token)));

    /// <summary>The metadata hold secrets of CHAP: only the owner reads them. Makes the file, empty, if there is none, so that it is
    /// never readable by others.</summary>
    public void ProtectMetadata()
    {
        var options = new FileStreamOptions { Mode = FileMode.OpenOrCreate, Access = FileAccess.ReadWrite, UnixCreateMode = OwnerOnly };
        new FileStream(MetadataPath, options).Dispose();
        foreach (string path in new[] { MetadataPath, MetadataPath + "-wal", MetadataPath + "-shm" })
        {
            if (File.Exists(path)) File.SetUnixFileMode(path, OwnerOnly);
        }
    }

    /// <summary>Size of the first store file: what was asked for, else half of the free disk, at most 64 GiB, whole MiB.</summary>
    public ulong FirstStoreBytes(ulong? wanted)
    {
        if (wanted is { } bytes) return bytes / Units.MiB * Units.MiB;
        ulong free = (ulong)new DriveInfo(DirectoryPath).AvailableFreeSpace;
        return Math.Min(free / 2, 64 * Units.GiB) / Units.MiB * Units.MiB;
    }

    public void Dispose() => _lock.Dispose();
}
