using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>
/// Events as lines of JSON, one for each change. What cannot be written is not kept and harms nothing else: the disk of the data
/// directory may be what the events tell of. Not thread-safe: its log's lock guards it. Blocks for as long as the page cache does.
/// </summary>
internal sealed class EventFile : IDisposable
{
    // Four times what a thousand events take.
    private const long BytesMax = 4 << 20;

    private const int LineBytesMax = 16 << 10;

    private readonly string _path;
    private FileStream? _file;

    /// <summary>The file at <paramref name="path"/>, made when there is none.</summary>
    public EventFile(string path) => _path = path;

    /// <summary>Every event in it, as it was last; a torn or damaged line is left out.</summary>
    public IReadOnlyList<EventInfo> Read()
    {
        var events = new SortedDictionary<long, EventInfo>();
        try
        {
            if (!File.Exists(_path)) return [];
            foreach (string line in File.ReadLines(_path))
            {
                if (Parse(line) is { } info && EventCatalogue.Find(info.Code) is not null) events[info.Id] = info;
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return [.. events.Values];
        }

        return [.. events.Values];
    }

    /// <summary>Adds a change.</summary>
    public void Append(EventInfo info) => Try(() =>
    {
        _file ??= Open();
        _file.Write(LineOf(info));
        _file.Flush();
    });

    /// <summary>Writes what is left anew once the file is large.</summary>
    public void CompactWhenLarge(Func<IReadOnlyList<EventInfo>> left)
    {
        if (_file is null || _file.Length <= BytesMax) return;
        Try(() =>
        {
            string fresh = _path + ".new";
            using (var file = new FileStream(fresh, FileMode.Create, FileAccess.Write, FileShare.Read))
            {
                foreach (EventInfo info in left()) file.Write(LineOf(info));
                file.Flush(flushToDisk: true);
            }

            Dispose();
            File.Move(fresh, _path, overwrite: true);
        });
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _file?.Dispose();
        _file = null;
    }

    private static byte[] LineOf(EventInfo info)
    {
        byte[] json = JsonSerializer.SerializeToUtf8Bytes(info, EventJson.Default.EventInfo);
        return json.Length > LineBytesMax ? [] : [.. json, (byte)'\n'];
    }

    private static EventInfo? Parse(string line)
    {
        if (line.Length is 0 or > LineBytesMax) return null;
        try
        {
            return JsonSerializer.Deserialize(line, EventJson.Default.EventInfo);
        }
        catch (JsonException)
        {
            return null;
        }
    }

    private FileStream Open()
    {
        var file = new FileStream(_path, new FileStreamOptions
        {
            Mode = FileMode.OpenOrCreate, Access = FileAccess.ReadWrite, Share = FileShare.Read,
            UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
        });
        file.Seek(0, SeekOrigin.End);
        // Behind a torn line the next one would be lost too.
        if (file.Length > 0)
        {
            file.Seek(-1, SeekOrigin.End);
            if (file.ReadByte() != '\n') file.Write(Encoding.ASCII.GetBytes("\n"));
        }

        return file;
    }

    private void Try(Action write)
    {
        try
        {
            write();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            Dispose(); // tried again with the next event
        }
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(EventInfo))]
internal sealed partial class EventJson : JsonSerializerContext;
