using System.Buffers.Binary;
using BlockServer.Streams;

namespace BlockServer.Pfcli;

/// <summary>What looks like a file of another format is not taken for a raw image unless that is asked for: the volume would hold the
/// container instead of the disk.</summary>
internal static class ForeignFormat
{
    private const int VdiMagicAt = 64;
    private const string Qcow2 = "a qcow2 image";
    private const uint VdiMagic = 0xBEDA107F;

    /// <summary>Throws <see cref="CliException"/> when the first bytes of an image (512, or all that there are) are of such a file.</summary>
    public static void Refuse(ReadOnlySpan<byte> begun)
    {
        if (StreamHeader.IsButForItsBegin(begun)) throw new CliException("the header of the stream is damaged: its first bytes are wrong; nothing was sent");
        if (NameOf(begun) is not { } name) return;
        string way = name.EndsWith("file", StringComparison.Ordinal) ? "unpack it first"
            : name == Qcow2 ? "pfcli converts it from a file, not from a pipe" : "convert it first (qemu-img convert -O raw)";
        throw new CliException($"this looks like {name}, not like a raw image: {way}, or say --format raw to take it as it is; nothing was sent");
    }

    private static string? NameOf(ReadOnlySpan<byte> begun)
    {
        if (begun.StartsWith((ReadOnlySpan<byte>)[0x51, 0x46, 0x49, 0xFB])) return Qcow2;
        if (begun.StartsWith("KDMV"u8) || begun.StartsWith("# Disk DescriptorFile"u8)) return "a VMDK image";
        if (begun.StartsWith("vhdxfile"u8)) return "a VHDX image";
        if (begun.StartsWith("conectix"u8)) return "a VHD image";
        if (begun.Length >= VdiMagicAt + 4 && BinaryPrimitives.ReadUInt32LittleEndian(begun[VdiMagicAt..]) == VdiMagic) return "a VDI image";
        if (begun.StartsWith((ReadOnlySpan<byte>)[0x1F, 0x8B, 0x08])) return "a gzip file";
        if (begun.StartsWith((ReadOnlySpan<byte>)[0xFD, 0x37, 0x7A, 0x58, 0x5A, 0x00])) return "an xz file";
        if (begun.StartsWith((ReadOnlySpan<byte>)[0x28, 0xB5, 0x2F, 0xFD])) return "a zstd file";
        return begun.StartsWith("BZh"u8) ? "a bzip2 file" : null;
    }
}
