using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Tests.Fuzz;

/// <summary>Damages bytes in the ways that break parsers: flipped bits, edge values in whole words, copied and cut ranges.</summary>
public static class Mutator
{
    private static readonly ulong[] Edges =
        [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, long.MaxValue, ulong.MaxValue];

    /// <summary>Damages <paramref name="bytes"/> in place, one to six times; mostly at the front, where headers are.</summary>
    public static void Mutate(SeededRandom random, Span<byte> bytes)
    {
        if (bytes.IsEmpty) return;
        for (int i = 1 + random.NextBelow(6); i > 0; i--)
        {
            int reach = random.NextChance(0.7) ? Math.Min(bytes.Length, 128) : bytes.Length;
            int at = random.NextBelow(reach);
            switch (random.NextBelow(6))
            {
                case 0:
                    bytes[at] ^= (byte)(1 << random.NextBelow(8));
                    break;
                case 1:
                    bytes[at] = (byte)random.NextUInt64();
                    break;
                case 2:
                    PutEdge(random, bytes[at..]);
                    break;
                case 3:
                    random.Fill(bytes.Slice(at, random.NextBelow(Math.Min(64, bytes.Length - at) + 1)));
                    break;
                case 4:
                    int length = random.NextBelow(Math.Min(64, bytes.Length - at) + 1);
                    bytes.Slice(at, length).CopyTo(bytes[random.NextBelow(bytes.Length - length + 1)..]);
                    break;
                default:
                    bytes.Slice(at, random.NextBelow(Math.Min(64, bytes.Length - at) + 1)).Clear();
                    break;
            }
        }
    }

    private static void PutEdge(SeededRandom random, Span<byte> target)
    {
        ulong value = Edges[random.NextBelow(Edges.Length)];
        if (target.Length >= 8 && random.NextChance(0.3)) BinaryPrimitives.WriteUInt64LittleEndian(target, value);
        else if (target.Length >= 4 && random.NextChance(0.5)) BinaryPrimitives.WriteUInt32LittleEndian(target, (uint)value);
        else if (target.Length >= 2) BinaryPrimitives.WriteUInt16LittleEndian(target, (ushort)value);
        else target[0] = (byte)value;
    }
}
