using System.Buffers.Binary;
using System.Security.Cryptography;
using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>Randomness from the system's generator, through a small buffer. Not thread-safe: one per loop.</summary>
public sealed class SystemRandom : IRandom
{
    private readonly byte[] _drawn = new byte[512];
    private int _used = 512;

    /// <inheritdoc/>
    public ulong NextUInt64()
    {
        if (_used == _drawn.Length)
        {
            RandomNumberGenerator.Fill(_drawn);
            _used = 0;
        }

        ulong value = BinaryPrimitives.ReadUInt64LittleEndian(_drawn.AsSpan(_used));
        _used += 8;
        return value;
    }

    /// <inheritdoc/>
    public void Fill(Span<byte> target) => RandomNumberGenerator.Fill(target);
}

/// <summary>The machine's wall clock.</summary>
public sealed class SystemClock : IWallClock
{
    /// <summary>The only one needed.</summary>
    public static SystemClock Instance { get; } = new();

    /// <inheritdoc/>
    public DateTimeOffset UtcNow => DateTimeOffset.UtcNow;
}
