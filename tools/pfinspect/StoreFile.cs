using System.Globalization;
using BlockServer.Core;
using BlockServer.Io;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Pfinspect;

/// <summary>Why a store cannot be inspected: one line for the operator.</summary>
public sealed class InspectException(string message, Exception? inner = null) : Exception(message, inner);

/// <summary>
/// A store's medium, open for reading only. Holds a shared flock while open: a store that a daemon has open (its flock is
/// exclusive) is refused, and no daemon opens it while it is being read.
/// </summary>
public sealed class StoreFile : IDisposable
{
    private const int ErrnoWouldBlock = 11;
    private readonly SafeFileHandle _handle;

    private StoreFile(SafeFileHandle handle, string path, ulong sizeBytes)
    {
        _handle = handle;
        Path = path;
        SizeBytes = sizeBytes;
    }

    /// <summary>Where it lies.</summary>
    public string Path { get; }

    /// <summary>Its size, rounded down to 4 KiB.</summary>
    public ulong SizeBytes { get; }

    /// <summary>Opens a file or block device; fails with an <see cref="InspectException"/>.</summary>
    public static StoreFile Open(string path)
    {
        try
        {
            SafeFileHandle handle = OpenLocked(path);
            ulong size = (ulong)RandomAccess.GetLength(handle);
            if (size == 0) size = BlockDeviceBytes(path);
            return new StoreFile(handle, path, size & ~(ulong)(Units.BlockBytes - 1));
        }
        catch (IOException e) when (e.HResult == ErrnoWouldBlock)
        {
            throw new InspectException($"'{path}' is held by a running daemon; stop it first, or ask it with pfcli", e);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or NotSupportedException or ArgumentException)
        {
            throw new InspectException($"'{path}' cannot be opened: {e.Message}", e);
        }
    }

    private static SafeFileHandle OpenLocked(string path)
    {
        SafeFileHandle? handle = null;
        IOException? busy = null;
        FileLock.TryTake(() =>
        {
            try
            {
                // FileShare.Read takes flock(LOCK_SH | LOCK_NB).
                handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read);
                return true;
            }
            catch (IOException e) when (e.HResult == ErrnoWouldBlock)
            {
                busy = e;
                return false;
            }
        });
        return handle ?? throw busy!;
    }

    /// <summary>Fills <paramref name="target"/>; false when the medium cannot give it.</summary>
    public bool TryRead(ulong offsetBytes, Span<byte> target)
    {
        if (offsetBytes > SizeBytes || (ulong)target.Length > SizeBytes - offsetBytes) return false;
        try
        {
            for (int done = 0; done < target.Length;)
            {
                int got = RandomAccess.Read(_handle, target[done..], (long)offsetBytes + done);
                if (got <= 0) return false;
                done += got;
            }

            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <inheritdoc />
    public void Dispose() => _handle.Dispose();

    /// <summary>fstat tells no size for a block device; the kernel's sysfs does, in sectors of 512 bytes.</summary>
    private static ulong BlockDeviceBytes(string path)
    {
        string target = File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path;
        string sizePath = "/sys/class/block/" + System.IO.Path.GetFileName(target) + "/size";
        return File.Exists(sizePath)
            && ulong.TryParse(File.ReadAllText(sizePath).Trim(), CultureInfo.InvariantCulture, out ulong sectors)
            ? sectors * Units.SectorBytes
            : 0;
    }
}
