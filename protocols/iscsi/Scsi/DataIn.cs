using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Puts answers into commands.</summary>
internal static class DataIn
{
    /// <summary>Copies the first <paramref name="length"/> bytes, or as many as were allowed for, into rented memory. The
    /// source may be reused as soon as this returns.</summary>
    public static ValueTask<ScsiResult> Reply(ILoop loop, ScsiCommand command, byte[] source, int length, int allocation)
    {
        int count = Math.Min(length, allocation);
        if (count == 0) return new ValueTask<ScsiResult>(ScsiResult.Good);
        IoBuffer? buffer = command.Lent ?? loop.Buffers.TryRent(count);
        if (buffer is null) return ReplyLater(loop, command, source.AsSpan(0, count).ToArray());
        Put(command, buffer, source.AsSpan(0, count));
        return new ValueTask<ScsiResult>(ScsiResult.Good);
    }

    /// <summary>Sets status and sense.</summary>
    public static void Finish(ScsiCommand command, in ScsiResult result, bool asDescriptors)
    {
        command.Status = result.Status;
        command.SenseLength =
            result.Status == ScsiStatus.CheckCondition ? result.Sense.WriteTo(command.Sense, asDescriptors) : 0;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<ScsiResult> ReplyLater(ILoop loop, ScsiCommand command, byte[] source)
    {
        Put(command, await loop.Buffers.RentAsync(source.Length), source);
        return ScsiResult.Good;
    }

    private static void Put(ScsiCommand command, IoBuffer buffer, ReadOnlySpan<byte> source)
    {
        source.CopyTo(buffer.Data.Span);
        (command.InBuffer, command.InStart, command.InLength) = (buffer, 0, source.Length);
    }
}
