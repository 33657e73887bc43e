using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace BlockServer.Core;

/// <summary>
/// CRC-32C (Castagnoli, reflected 0x82F63B78, initial and final inversion; RFC 3720 B.4): the checksum of every block,
/// page and record, and of iSCSI digests. Uses the CPU's instruction through <see cref="BitOperations"/>; every 4 KiB
/// are cut into four lanes so that the instruction's latency (3 cycles) is hidden, about 3x faster than one stream.
/// </summary>
public static class Crc32C
{
    private const uint Polynomial = 0x82F63B78;
    private const int LaneBytes = Units.BlockBytes / 4;

    // Advances a CRC register over 1,024, 2,048 and 3,072 zero bytes, one table of 256 entries per register byte.
    private static readonly uint[] Over1 = ShiftTable(LaneBytes);
    private static readonly uint[] Over2 = ShiftTable(2 * LaneBytes);
    private static readonly uint[] Over3 = ShiftTable(3 * LaneBytes);

    /// <summary>CRC of a 4 KiB block of zeros.</summary>
    public static readonly uint ZeroBlock = Compute(new byte[Units.BlockBytes]);

    /// <summary>The checksum of <paramref name="data"/>.</summary>
    public static uint Compute(ReadOnlySpan<byte> data) =>
        data.Length == Units.BlockBytes ? ~UpdateBlock(~0u, data) : ~Update(~0u, data);

    /// <summary>Continues a checksum: <c>Append(Compute(a), b) == Compute(a + b)</c>.</summary>
    public static uint Append(uint crc, ReadOnlySpan<byte> data) => ~Update(~crc, data);

    /// <summary>Checksums of consecutive 4 KiB blocks, one result each.</summary>
    public static void ComputeBlocks(ReadOnlySpan<byte> data, Span<uint> results)
    {
        Check.That(data.Length == results.Length * Units.BlockBytes);
        for (int i = 0; i < results.Length; i++)
            results[i] = ~UpdateBlock(~0u, data.Slice(i * Units.BlockBytes, Units.BlockBytes));
    }

    private static uint UpdateBlock(uint register, ReadOnlySpan<byte> block)
    {
        ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(block);
        ref ulong p = ref MemoryMarshal.GetReference(words);
        const nuint lane = LaneBytes / 8;
        uint a = register, b = 0, c = 0, d = 0;
        for (nuint i = 0; i < lane; i++)
        {
            a = BitOperations.Crc32C(a, Unsafe.Add(ref p, i));
            b = BitOperations.Crc32C(b, Unsafe.Add(ref p, i + lane));
            c = BitOperations.Crc32C(c, Unsafe.Add(ref p, i + 2 * lane));
            d = BitOperations.Crc32C(d, Unsafe.Add(ref p, i + 3 * lane));
        }

        return Shift(Over3, a) ^ Shift(Over2, b) ^ Shift(Over1, c) ^ d;
    }

    private static uint Update(uint register, ReadOnlySpan<byte> data)
    {
        for (; data.Length >= Units.BlockBytes; data = data[Units.BlockBytes..]) register = UpdateBlock(register, data);
        ReadOnlySpan<ulong> words = MemoryMarshal.Cast<byte, ulong>(data);
        foreach (ulong word in words) register = BitOperations.Crc32C(register, word);
        foreach (byte b in data[(words.Length * 8)..]) register = BitOperations.Crc32C(register, b);
        return register;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static uint Shift(uint[] table, uint register) =>
        table[register & 0xFF] ^ table[256 + ((register >> 8) & 0xFF)]
        ^ table[512 + ((register >> 16) & 0xFF)] ^ table[768 + (register >> 24)];

    /// <summary>The register is linear over GF(2): what each byte value becomes after <paramref name="zeroBytes"/> zeros.</summary>
    private static uint[] ShiftTable(int zeroBytes)
    {
        Span<uint> bits = stackalloc uint[32];
        for (int i = 0; i < 32; i++)
        {
            uint register = 1u << i;
            for (int n = 0; n < zeroBytes * 8; n++)
                register = (register >> 1) ^ ((register & 1) != 0 ? Polynomial : 0);
            bits[i] = register;
        }

        var table = new uint[1024];
        for (int position = 0; position < 4; position++)
        {
            for (int value = 0; value < 256; value++)
            {
                uint sum = 0;
                for (int bit = 0; bit < 8; bit++)
                {
                    if ((value & (1 << bit)) != 0) sum ^= bits[position * 8 + bit];
                }

                table[position * 256 + value] = sum;
            }
        }

        return table;
    }
}
