using System.Buffers.Binary;
using System.Numerics;

namespace BlockServer.Core;

/// <summary>
/// xoshiro256** seeded through splitmix64 (Blackman and Vigna, 2018): the same numbers from the same seed on every
/// machine, which System.Random does not promise across versions. Not for secrets. Not thread-safe.
/// </summary>
public sealed class SeededRandom : IRandom
{
    private ulong _s0, _s1, _s2, _s3;

    /// <summary>Begins the sequence of <paramref name="seed"/>.</summary>
    public SeededRandom(ulong seed)
    {
        _s0 = SplitMix(ref seed);
        _s1 = SplitMix(ref seed);
        _s2 = SplitMix(ref seed);
        _s3 = SplitMix(ref seed);
    }

    /// <inheritdoc/>
    public ulong NextUInt64()
    {
        ulong result = BitOperations.RotateLeft(_s1 * 5, 7) * 9;
        ulong t = _s1 << 17;
        _s2 ^= _s0;
        _s3 ^= _s1;
        _s1 ^= _s2;
        _s0 ^= _s3;
        _s2 ^= t;
        _s3 = BitOperations.RotateLeft(_s3, 45);
        return result;
    }

    /// <inheritdoc/>
    public void Fill(Span<byte> target)
    {
        while (target.Length >= 8)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(target, NextUInt64());
            target = target[8..];
        }

        if (target.IsEmpty) return;
        Span<byte> rest = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(rest, NextUInt64());
        rest[..target.Length].CopyTo(target);
    }

    private static ulong SplitMix(ref ulong state)
    {
        ulong z = state += 0x9E3779B97F4A7C15;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        return z ^ (z >> 31);
    }
}
